//! What a run writes for the page to show.

use crate::train::Place;
use serde_json::Value;
use std::fs;

#[test]
fn a_run_records_its_plan_its_data_and_its_warnings() {
    let place = Place::videos();
    fs::write(place.path("clips/broken.mp4"), "no film").unwrap();
    place.train("run", &["train.steps=2"]);
    let json =
        |name: &str| -> Value { serde_json::from_slice(&fs::read(place.path("run").join(name)).unwrap()).unwrap() };
    assert!(json("plan.json")["bytes"].as_u64().unwrap() > 1 << 20);
    let data = json("data.json");
    assert_eq!(
        (&data["clips"], &data["file_count"], &data["skipped"][0]["path"]),
        (&6.into(), &3.into(), &"broken.mp4".into())
    );
    let sheet = fs::read(place.path("run/data.png")).unwrap();
    assert!(sheet.starts_with(b"\x89PNG") && sheet.len() > 1000);
    let warnings = fs::read_to_string(place.path("run/warnings.jsonl")).unwrap();
    let of_file: Vec<&str> = warnings.lines().filter(|line| line.contains("broken.mp4")).collect();
    assert_eq!(of_file.len(), 1, "{warnings}");
    assert!(serde_json::from_str::<Value>(of_file[0]).unwrap()["time"].as_str().unwrap().ends_with('Z'));
}
