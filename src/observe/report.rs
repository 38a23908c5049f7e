//! [`write_report`] writes what the page shows of some runs as one file that needs no server: curves, clips and
//! pictures within it.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use std::io::Read;
use std::path::{Path, PathBuf};

use super::details::{details, kind_of_media};
use super::follow::Follower;
use super::page::{FRAME, SCRIPTS, STYLE};
use super::runs::{METRICS, Run, find};
use crate::files::atomic_write;
use crate::{Error, Result, bail};

/// Bytes of clips and pictures in a report at most: mail programs and browsers open files of some tens of megabytes.
pub const MOST_MEDIA: u64 = 24 << 20;

/// What a report holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    pub runs: usize,
    /// Clips and pictures within, and those for which there was no room.
    pub media: usize,
    pub left_out: usize,
}

/// Writes the report of the runs at and below `places` to the file `path`.
///
/// # Errors
/// There is no run; its metrics cannot be read; the file cannot be written.
pub fn write_report(places: &[PathBuf], path: &Path) -> Result<Written> {
    let runs = find(places);
    if runs.is_empty() {
        let names: Vec<_> = places.iter().map(|place| place.display().to_string()).collect();
        bail!(
            Checkpoint,
            "{}: there is no run, which is a folder with a config.toml or a metrics.jsonl",
            names.join(", ")
        )
    }
    let (mut all, mut curves) = (Map::new(), Map::new());
    for run in &runs {
        all.insert(run.id.clone(), details(run));
        curves.insert(run.id.clone(), metrics(run)?);
    }
    let (mut files, mut left, mut left_out) = (Map::new(), MOST_MEDIA, 0);
    for (run, name) in by_weight(&runs, &all) {
        match embedded(run, &name, left) {
            Some((url, bytes)) => {
                files.insert(format!("{}/{name}", run.id), url.into());
                left -= bytes;
            }
            None => left_out += 1,
        }
    }
    let written = Written { runs: runs.len(), media: files.len(), left_out };
    let list: Vec<Value> = runs.iter().map(summary).collect();
    let report = json!({
        "runs": list, "details": all, "metrics": curves, "files": files, "left_out": left_out,
        "most_media": MOST_MEDIA, "longreel": env!("CARGO_PKG_VERSION"),
    });
    let html = html(&report);
    atomic_write(path, |out| out.write_all(html.as_bytes()))?;
    Ok(written)
}

/// As the page has it, but for where the run is: a report goes to other people.
fn summary(run: &Run) -> Value {
    let mut summary = run.summary();
    summary["path"] = Value::Null;
    summary
}

fn metrics(run: &Run) -> Result<Value> {
    let failed = |e| Error::io(run.dir.path().join(METRICS), e);
    let Ok(file) = run.dir.open(METRICS) else { return Ok(json!({ "series": {} })) };
    let mut follower = Follower::default();
    let mut read = None;
    while read != Some(follower.read()) {
        read = Some(follower.read());
        follower.advance(&file).map_err(failed)?;
    }
    Ok(follower.json(0, 0, 0))
}

/// Pictures and clips of all runs, what matters most first: the last step, the first, then those half-way between ones
/// that are in already, so that what room there is shows the whole way.
fn by_weight<'a>(runs: &'a [Run], all: &Map<String, Value>) -> Vec<(&'a Run, String)> {
    let mut weighed = vec![];
    for run in runs {
        let one = &all[&run.id];
        let texts = |list: &Value| list.as_array().into_iter().flatten().cloned().collect::<Vec<_>>();
        weighed.extend(texts(&one["pictures"]).iter().filter_map(|name| Some((0, run, name.as_str()?.to_owned()))));
        let samples = texts(&one["samples"]);
        let mut steps: Vec<u64> = samples.iter().filter_map(|sample| sample["step"].as_u64()).collect();
        steps.dedup();
        let ranks = halving(steps.len());
        for sample in &samples {
            let at = steps.iter().position(|step| Some(*step) == sample["step"].as_u64());
            if let (Some(at), Some(name)) = (at, sample["file"].as_str()) {
                weighed.push((1 + ranks[at], run, format!("{}/{name}", super::details::SAMPLES)));
            }
        }
    }
    weighed.sort_by_key(|(rank, ..)| *rank); // stable
    weighed.into_iter().map(|(_, run, name)| (run, name)).collect()
}

/// For each of `count` places in a row its rank: the last, the first, then middles of gaps, wide ones first.
fn halving(count: usize) -> Vec<usize> {
    let mut ranks = vec![usize::MAX; count];
    let mut next = 0;
    let mut give = |ranks: &mut Vec<usize>, at: usize| {
        if ranks[at] == usize::MAX {
            ranks[at] = next;
            next += 1;
        }
    };
    if count == 0 {
        return ranks;
    }
    give(&mut ranks, count - 1);
    give(&mut ranks, 0);
    let mut gap = count.next_power_of_two();
    while gap > 0 {
        (0..count).step_by(gap).for_each(|at| give(&mut ranks, at));
        gap /= 2;
    }
    ranks
}

/// The file as a `data:` URL, and its bytes; none if it has more than `most`, or cannot be read.
fn embedded(run: &Run, name: &str, most: u64) -> Option<(String, u64)> {
    let kind = kind_of_media(name.rsplit_once('.')?.1)?;
    let mut bytes = vec![];
    run.dir.open(name).ok()?.take(most + 1).read_to_end(&mut bytes).ok()?;
    let count = bytes.len() as u64;
    (count <= most).then(|| (format!("data:{kind};base64,{}", STANDARD.encode(bytes)), count))
}

/// The page with everything within. Its own policy lets it load nothing, and run only the scripts that are in it.
fn html(report: &Value) -> String {
    let hash = |text: &str| format!("'sha256-{}'", STANDARD.encode(Sha256::digest(text)));
    let hashes: Vec<String> = SCRIPTS.iter().map(|(_, text)| hash(text)).collect();
    let policy = format!(
        "default-src 'none'; script-src {}; style-src {}; img-src data:; media-src data:; base-uri 'none'; \
         form-action 'none'",
        hashes.join(" "),
        hash(STYLE)
    );
    let style = format!("<meta http-equiv=\"Content-Security-Policy\" content=\"{policy}\">\n<style>{STYLE}</style>");
    // In a script element only `<` could end or escape it.
    let data = report.to_string().replace('<', "\\u003c");
    let scripts = SCRIPTS.map(|(_, text)| format!("<script>{text}</script>\n")).concat();
    let scripts = format!("<script type=\"application/json\" id=\"report\">{data}</script>\n{}", scripts.trim_end());
    let (above, below) = FRAME.split_once("<!-- scripts -->").expect("the frame has a place for scripts");
    [&above.replace("<!-- style -->", &style), scripts.as_str(), below].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_for_few_clips_shows_the_whole_way() {
        let ranks = halving(9);
        let taken = |most: usize| (0..9).filter(|&at| ranks[at] < most).collect::<Vec<_>>();
        assert_eq!((taken(1), taken(2), taken(3), taken(5)), (vec![8], vec![0, 8], vec![0, 4, 8], vec![0, 2, 4, 6, 8]));
        assert_eq!(taken(9), (0..9).collect::<Vec<_>>());
        assert_eq!((halving(0), halving(1)), (vec![], vec![0]));
    }

    #[test]
    fn no_name_in_a_report_ends_its_script() {
        let html = html(&json!({ "runs": ["</script><script>alert(1)</script>"] }));
        assert!(!html.contains("alert(1)</script>") && html.contains("\\u003cscript>alert(1)"));
    }
}
