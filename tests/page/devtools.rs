//! A headless Chromium, driven by the DevTools protocol over two pipes: messages are JSON, each ended by a NUL.

use parking_lot::{Mutex, MutexGuard};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// How long anything may take; a busy machine may need most of it.
const LIMIT: Duration = Duration::from_secs(120);

/// One browser at a time: several would only wait for each other.
static TURN: Mutex<()> = Mutex::new(());

/// One page of a browser of its own.
pub struct Browser {
    child: Child,
    pipe: ChildStdin,
    messages: Receiver<Value>,
    session: Option<String>,
    sent: u64,
    /// What the page has told that nobody asked for.
    events: Vec<Value>,
    _profile: TempDir,
    _turn: MutexGuard<'static, ()>,
}

impl Browser {
    /// Starts Chromium; none where there is none, which is said.
    pub fn start() -> Option<Self> {
        let installed =
            |name: &&str| Command::new("sh").args(["-c", "command -v \"$0\" >&2", name]).stderr(Stdio::null()).status();
        let names = ["chromium", "chromium-browser", "google-chrome"];
        let Some(name) = names.into_iter().find(|name| installed(name).is_ok_and(|status| status.success())) else {
            eprintln!("skipped: no Chromium on the PATH, in which the page would be looked at");
            return None;
        };
        let turn = TURN.lock();
        let profile = TempDir::new().unwrap();
        let mut command = Command::new("sh");
        // Chromium reads from descriptor 3 and writes to 4.
        command.args([
            "-c",
            "exec \"$0\" \"$@\" 3<&0 4>&1 </dev/null >/dev/null 2>&1",
            name,
            "--remote-debugging-pipe",
        ]);
        command.args([
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-sync",
        ]);
        command.args(["--disable-background-networking", "--disable-component-update"]);
        command.arg(format!("--user-data-dir={}", profile.path().display())).arg("about:blank");
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (pipe, out) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let (send, messages) = mpsc::channel();
        std::thread::spawn(move || {
            for message in BufReader::new(out).split(0).map_while(Result::ok) {
                let Ok(message) = serde_json::from_slice(&message) else { break };
                if send.send(message).is_err() {
                    break;
                }
            }
        });
        let (session, sent, events) = (None, 0, vec![]);
        let mut browser = Self { child, pipe, messages, session, sent, events, _profile: profile, _turn: turn };
        let target = browser.call("Target.createTarget", json!({ "url": "about:blank" }))["targetId"].clone();
        let session = browser.call("Target.attachToTarget", json!({ "targetId": target, "flatten": true }));
        browser.session = session["sessionId"].as_str().map(str::to_owned);
        for domain in ["Page", "Runtime", "Log", "Network"] {
            browser.call(&format!("{domain}.enable"), json!({}));
        }
        Some(browser)
    }

    /// Calls a method of the protocol; its result.
    pub fn call(&mut self, method: &str, params: Value) -> Value {
        self.sent += 1;
        let mut message = json!({ "id": self.sent, "method": method, "params": params });
        if let Some(session) = &self.session {
            message["sessionId"] = session.as_str().into();
        }
        self.pipe.write_all(format!("{message}\0").as_bytes()).unwrap();
        loop {
            let message = self.messages.recv_timeout(LIMIT).unwrap_or_else(|e| panic!("{method}: {e}"));
            if message["id"] == self.sent {
                assert!(message["error"].is_null(), "{method}: {message}");
                return message["result"].clone();
            }
            self.events.push(message);
        }
    }

    /// Goes to an address, with a window of this size.
    pub fn open(&mut self, address: &str, [width, height]: [u32; 2]) {
        let size = json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600 });
        self.call("Emulation.setDeviceMetricsOverride", size);
        self.call("Page.navigate", json!({ "url": address }));
    }

    /// The value of a JavaScript expression.
    pub fn value(&mut self, expression: &str) -> Value {
        let asked = json!({ "expression": expression, "returnByValue": true, "awaitPromise": true });
        let answer = self.call("Runtime.evaluate", asked);
        assert!(answer["exceptionDetails"].is_null(), "{expression}: {answer}");
        answer["result"]["value"].clone()
    }

    /// Whether the expression becomes true within `limit`.
    pub fn becomes(&mut self, expression: &str, limit: Duration) -> bool {
        let start = Instant::now();
        while start.elapsed() < limit {
            // While the page loads, there may be nothing to ask.
            if self.value(&format!("(() => {{ try {{ return Boolean({expression}); }} catch {{ return false; }} }})()"))
                == true
            {
                return true;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        false
    }

    /// Returns once the expression is true.
    pub fn wait(&mut self, expression: &str) {
        let told = self.becomes(expression, LIMIT);
        assert!(told, "never true: {expression}\n{}\n{:?}", self.value("document.body.innerText"), self.complaints());
    }

    /// Presses a key where the focus is.
    pub fn press(&mut self, key: &str) {
        let text = if key.chars().count() == 1 { json!(key) } else { Value::Null };
        for kind in ["keyDown", "keyUp"] {
            let mut event = json!({ "type": kind, "key": key, "code": key });
            if kind == "keyDown" && !text.is_null() {
                event["text"] = text.clone();
            }
            if key == "Tab" {
                event["windowsVirtualKeyCode"] = 9.into();
            }
            self.call("Input.dispatchKeyEvent", event);
        }
    }

    /// Errors and warnings of the page's console, its exceptions, and what it asked for and did not get.
    pub fn complaints(&self) -> Vec<String> {
        let wrong = |event: &&Value| match event["method"].as_str() {
            Some("Runtime.exceptionThrown" | "Log.entryAdded") => true,
            Some("Runtime.consoleAPICalled") => matches!(event["params"]["type"].as_str(), Some("error" | "warning")),
            Some("Network.loadingFailed") => event["params"]["canceled"] != true,
            _ => false,
        };
        self.events.iter().filter(wrong).map(|event| event["params"].to_string()).collect()
    }

    /// Addresses that the page has asked for.
    pub fn requests(&self) -> Vec<String> {
        let sent = self.events.iter().filter(|event| event["method"] == "Network.requestWillBeSent");
        sent.filter_map(|event| Some(event["params"]["request"]["url"].as_str()?.to_owned())).collect()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        self.session = None;
        let _ = self.pipe.write_all(b"{\"id\":0,\"method\":\"Browser.close\"}\0"); // with all of its processes
        let start = Instant::now();
        while self.child.try_wait().is_ok_and(|status| status.is_none()) && start.elapsed() < Duration::from_secs(20) {
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
