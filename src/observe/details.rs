//! [`details`] is what there is to say of a run besides its curves: config, samples, plan, data, warnings; each as its
//! files have it.

use serde_json::{Value, json};

use super::folder::end_of;
use super::runs::Run;

/// Where a run's sample clips are.
pub(super) const SAMPLES: &str = "samples";

/// Other files of a run that the page may ask for.
pub(super) const PICTURES: [&str; 1] = ["data.png"];

/// Sample clips that are listed at most.
const MOST_SAMPLES: usize = 20_000;

/// Bytes that are read of `data.json`, and of the end of `warnings.jsonl`, at most.
const LONGEST: u64 = 4 << 20;
const LAST_WARNINGS: u64 = 256 << 10;

/// Everything but the metrics. What a run does not have is null or empty.
pub(super) fn details(run: &Run) -> Value {
    let json = |name| run.dir.text(name, LONGEST).ok().and_then(|text| serde_json::from_str(&text).ok());
    let pictures = PICTURES.iter().filter(|name| run.dir.open(name).is_ok());
    json!({
        "id": run.id, "name": run.name, "config": run.config(), "samples": samples(run),
        "plan": json("plan.json").unwrap_or(Value::Null), "data": json("data.json").unwrap_or(Value::Null),
        "warnings": warnings(run), "pictures": pictures.collect::<Vec<_>>(),
    })
}

/// The sample clips by step and number: `step-00000120-0.mp4`.
fn samples(run: &Run) -> Vec<Value> {
    let names = run.dir.names(SAMPLES, MOST_SAMPLES).unwrap_or_default();
    let mut samples: Vec<_> = names.iter().filter_map(|name| Some((sample(name)?, name))).collect();
    samples.sort();
    let shown = |((step, number), name): ((u64, u64), &String)| json!({"step": step, "number": number, "file": name});
    samples.into_iter().map(shown).collect()
}

/// Step and number of the sample that has this name.
fn sample(name: &str) -> Option<(u64, u64)> {
    let (stem, _) = name.rsplit_once('.').filter(|(_, kind)| kind_of_media(kind).is_some())?;
    let (step, number) = stem.strip_prefix("step-")?.split_once('-')?;
    Some((step.parse().ok()?, number.parse().ok()?))
}

/// The media type of files that end so; none for files that the page does not show.
pub(super) fn kind_of_media(ending: &str) -> Option<&'static str> {
    Some(match ending {
        "mp4" => "video/mp4",
        "webm" => "video/webm",
        "png" => "image/png",
        "gif" => "image/gif",
        "webp" => "image/webp",
        _ => return None,
    })
}

/// The last warnings, in order.
fn warnings(run: &Run) -> Vec<Value> {
    let end = run.dir.open("warnings.jsonl").and_then(|file| end_of(&file, LAST_WARNINGS));
    let Ok((bytes, _)) = end else { return vec![] };
    let text = String::from_utf8_lossy(&bytes);
    text.lines().filter_map(|line| serde_json::from_str(line).ok().filter(Value::is_object)).collect()
}
