//! `longreel watch` and `longreel report`: what the server answers and what it refuses; the page in a browser, where
//! there is one.

mod browser;
mod devtools;
mod record;
mod server;
mod written;

use crate::train::longreel;
use longreel::data::write::write_video;
use longreel::observe::metrics::{MetricsLog, Record};
use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

/// What must not be served: it stands in files outside the runs' folders, and in those of a run that the page does not
/// show.
const SECRET: &str = "correct horse battery staple";

/// Makes the folder of a run that has done `steps` steps, with two samples at every tenth.
fn make_run(root: &Path, steps: u64, lr: f64) {
    fs::create_dir_all(root.join("samples")).unwrap();
    let config = format!("[run]\nseed = 0\n[train]\nsteps = 40\nlr = {lr}\n[data]\npath = \"clips\"\n");
    fs::write(root.join("config.toml"), config).unwrap();
    let mut log = MetricsLog::create(&root.join("metrics.jsonl")).unwrap();
    for step in 1..=steps {
        log.write(&record(step, lr)).unwrap();
        if step.is_multiple_of(10) {
            (0..2).for_each(|i| clip(&root.join(format!("samples/step-{step:08}-{i}.mp4"))));
        }
    }
    fs::write(root.join("plan.json"), r#"{"bytes": 123456789}"#).unwrap();
    fs::write(root.join("warnings.jsonl"), r#"{"time": "2026-11-30T01:02:03Z", "message": "a <b>bold</b> warning"}"#)
        .unwrap();
    fs::write(root.join("state.json"), SECRET).unwrap();
}

fn record(step: u64, lr: f64) -> Record {
    let more = [("heldout_q0", 0.5), ("seconds_attention", 0.02), ("seconds_optimizer", 0.01)];
    Record {
        step,
        loss: 1.0 / step as f64 + lr,
        heldout: step.is_multiple_of(5).then_some(0.4),
        grad_norm: 0.5,
        lr,
        tokens_per_s: 1000.0 + step as f64,
        seconds: 0.03,
        waited: 0.0,
        peak_rss: 100 << 20,
        more: BTreeMap::from(more.map(|(name, value)| (name.to_owned(), value))),
    }
}

/// A clip of two seconds.
fn clip(path: &Path) {
    let pixels: Vec<u8> = (0..16 * 16 * 32 * 3).map(|i| (i * 7 % 251) as u8).collect();
    write_video(path, &pixels, 16, 32, 8.0).unwrap();
}

/// Adds a line to a run's metrics, as a run that goes on does.
fn append(root: &Path, step: u64) {
    let mut file = OpenOptions::new().append(true).open(root.join("metrics.jsonl")).unwrap();
    writeln!(file, "{}", serde_json::to_string(&record(step, 0.001)).unwrap()).unwrap();
}

/// `longreel watch` on a port of its own, until this is dropped.
struct Watching {
    child: Child,
    port: u16,
}

impl Watching {
    fn start(places: &[PathBuf]) -> Self {
        let mut command = longreel();
        command.arg("watch").args(places).args(["--port", "0"]);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let port = line.trim().strip_prefix("http://127.0.0.1:").and_then(|rest| rest.strip_suffix('/')).expect(&line);
        Self { port: port.parse().unwrap(), child }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(240))).unwrap(); // a busy machine takes its time
        stream
    }

    /// Sends `request` as it is; all that comes back.
    fn send(&self, request: &[u8]) -> Answer {
        let mut stream = self.connect();
        stream.write_all(request).unwrap();
        let mut bytes = vec![];
        stream.read_to_end(&mut bytes).unwrap();
        Answer::of(&bytes)
    }

    fn get(&self, path: &str) -> Answer {
        self.get_with(path, "")
    }

    /// Asks for `path` with further lines of the head.
    fn get_with(&self, path: &str, fields: &str) -> Answer {
        self.send(format!("GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{}\r\n{fields}\r\n", self.port).as_bytes())
    }

    fn json(&self, path: &str) -> serde_json::Value {
        let answer = self.get(path);
        assert_eq!(answer.status, 200, "{path}: {}", answer.text());
        serde_json::from_slice(&answer.body).unwrap()
    }

    /// The address of the run that has this name.
    fn id(&self, name: &str) -> String {
        let runs = self.json("/api/runs");
        let run = runs.as_array().unwrap().iter().find(|run| run["name"] == name).expect(name).clone();
        run["id"].as_str().unwrap().to_owned()
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a server sent back.
struct Answer {
    status: u16,
    head: String,
    body: Vec<u8>,
}

impl Answer {
    fn of(bytes: &[u8]) -> Self {
        let end = bytes.windows(4).position(|window| window == b"\r\n\r\n").expect("no head");
        let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        Self { status, head, body: bytes[end + 4..].to_vec() }
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    fn field(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    }
}
