//! [`Page`] answers what the page asks for: its own files, the list of runs, a run's details and curves, its clips.
//!
//! Everything is read from the runs' folders when it is asked for; no run notices. The script, the style and the frame
//! of the page are in `page/`, and are part of the binary.

use parking_lot::Mutex;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use super::details::{PICTURES, SAMPLES, details, kind_of_media};
use super::follow::Follower;
use super::http::{Answer, Body, Request};
use super::runs::{METRICS, Run, find};

/// The frame of the page; style and scripts come where its comments say.
pub(super) const FRAME: &str = include_str!("page/page.html");

pub(super) const STYLE: &str = include_str!("page/style.css");

/// The scripts, in the order in which they run.
pub(super) const SCRIPTS: [(&str, &str); 9] = [
    ("/source.js", include_str!("page/source.js")),
    ("/numbers.js", include_str!("page/numbers.js")),
    ("/curves.js", include_str!("page/curves.js")),
    ("/chart.js", include_str!("page/chart.js")),
    ("/zoom.js", include_str!("page/zoom.js")),
    ("/panels.js", include_str!("page/panels.js")),
    ("/samples.js", include_str!("page/samples.js")),
    ("/tables.js", include_str!("page/tables.js")),
    ("/app.js", include_str!("page/app.js")),
];

/// Runs whose curves are kept in memory at most; some megabytes each.
const MOST_FOLLOWED: usize = 32;

const JSON: &str = "application/json";
const SCRIPT: &str = "text/javascript; charset=utf-8";

/// What has been read so far of the runs at and below some folders.
#[derive(Debug)]
pub(super) struct Page {
    places: Vec<PathBuf>,
    runs: Mutex<Vec<Run>>,
    followers: Mutex<HashMap<String, Arc<Mutex<Follower>>>>,
}

impl Page {
    pub fn new(places: Vec<PathBuf>) -> Self {
        Self { places, runs: Mutex::default(), followers: Mutex::default() }
    }

    /// The answer to a request. It never waits for another one but for one about the same run's curves.
    pub fn answer(&self, request: &Request) -> Answer {
        let parts: Vec<&str> = request.path.split('/').skip(1).collect();
        match parts[..] {
            [""] => Answer::text("text/html; charset=utf-8", frame()),
            ["style.css"] => Answer::text("text/css; charset=utf-8", STYLE),
            ["api", "runs"] => Answer::text(JSON, self.list().to_string()),
            ["api", "runs", id] => self.of(id, |run| Answer::text(JSON, details(run).to_string())),
            ["api", "runs", id, "metrics"] => self.of(id, |run| self.metrics(run, request)),
            ["files", id, SAMPLES, name] => self.of(id, |run| file(run, &format!("{SAMPLES}/{name}"))),
            ["files", id, name] if PICTURES.contains(&name) => self.of(id, |run| file(run, name)),
            _ => match SCRIPTS.iter().find(|(name, _)| *name == request.path) {
                Some((_, text)) => Answer::text(SCRIPT, *text),
                None => Answer::not_found(),
            },
        }
    }

    /// The runs that are there now.
    fn list(&self) -> Value {
        self.find().iter().map(Run::summary).collect()
    }

    /// Looks for runs anew.
    fn find(&self) -> Vec<Run> {
        let runs = find(&self.places);
        self.runs.lock().clone_from(&runs);
        runs
    }

    /// What `answer` makes of the run `id`.
    fn of(&self, id: &str, answer: impl FnOnce(&Run) -> Answer) -> Answer {
        let named = |run: &Run| run.id == id;
        let known = self.runs.lock().iter().find(|run| named(run)).cloned();
        let run = known.or_else(|| self.find().into_iter().find(named));
        run.map_or_else(Answer::not_found, |run| answer(&run))
    }

    fn metrics(&self, run: &Run, request: &Request) -> Answer {
        let Ok(metrics) = run.dir.open(METRICS) else { return Answer::text(JSON, json!({ "series": {} }).to_string()) };
        let follower = self.follower(&run.id);
        let mut follower = follower.lock();
        let number = |name| request.number(name);
        let answer = match number("last") {
            0 => follower
                .advance(&metrics)
                .map(|()| follower.json(number("generation"), number("width"), number("from"))),
            last => follower.close(&metrics, number("first"), last).map(|close| close.unwrap_or(Value::Null)),
        };
        match answer {
            Ok(json) => Answer::text(JSON, json.to_string()),
            Err(_) => Answer::error(500, "the metrics cannot be read"),
        }
    }

    fn follower(&self, id: &str) -> Arc<Mutex<Follower>> {
        let mut followers = self.followers.lock();
        if followers.len() >= MOST_FOLLOWED && !followers.contains_key(id) {
            followers.clear(); // they are read again when asked for
        }
        followers.entry(id.to_owned()).or_default().clone()
    }
}

/// A file that the page shows.
fn file(run: &Run, name: &str) -> Answer {
    let kind = name.rsplit_once('.').and_then(|(_, ending)| kind_of_media(ending));
    match (kind, run.dir.open(name)) {
        (Some(kind), Ok(file)) => Answer { status: 200, kind, body: Body::File(file) },
        _ => Answer::not_found(),
    }
}

/// The page with its style and scripts beside it.
fn frame() -> String {
    let scripts = SCRIPTS.map(|(name, _)| format!("<script src=\"{name}\"></script>\n")).concat();
    FRAME
        .replace("<!-- style -->", "<link rel=\"stylesheet\" href=\"/style.css\">")
        .replace("<!-- scripts -->", scripts.trim_end())
}
