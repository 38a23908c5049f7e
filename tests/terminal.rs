//! What reaches a terminal: no control character of a file's name, wherever the name is shown.

use crate::train::{Place, fail, longreel, succeed, text};
use image::RgbImage;
use std::fs;
use std::process::Command;

/// Names that clear the screen, forge a line, turn the direction of writing, and use an 8-bit control; and how they are
/// shown.
const NAMES: [(&str, &str); 4] = [
    ("bad\u{1b}[2Jname", r"bad\x1b[2Jname"),
    ("two\nerror: lines", r"two\nerror: lines"),
    ("turned\u{202e}gpj", r"turned\u{202e}gpj"),
    ("eight\u{9b}31m", r"eight\x9b31m"),
];

/// Asserts that `shown` has no control character but newlines and tabs, and that lines begin as they should.
fn is_plain(shown: &str) {
    let wrong = |c: &char| (c.is_control() && !matches!(c, '\n' | '\t')) || matches!(c, '\u{202a}'..='\u{202e}');
    assert_eq!(shown.chars().find(wrong), None, "{shown:?}");
    assert!(shown.lines().filter(|line| line.starts_with("error: lines")).count() == 0, "{shown:?}");
}

#[test]
fn scan_shows_no_control_characters_of_names() {
    let place = Place::videos();
    fs::create_dir(place.path("set")).unwrap();
    for (name, _) in NAMES {
        RgbImage::new(16, 16).save(place.path(&format!("set/{name}.png"))).unwrap();
        fs::write(place.path(&format!("set/{name}.doc")), "not used").unwrap();
    }
    let scan = |args: &[&str]| {
        let size = ["--frames", "1", "--height", "16", "--width", "16"];
        let output = succeed(longreel().arg("scan").arg(place.path("set")).args(size).args(args));
        (text(&output.stdout), text(&output.stderr))
    };
    let (report, log) = scan(&["--sheet", place.path("sheet.png").to_str().unwrap()]);
    for (_, shown) in NAMES {
        assert!(report.lines().any(|line| line.starts_with(&format!("{shown}.png"))), "{shown}: {report}");
        assert!(report.lines().any(|line| line.starts_with(&format!("{shown}.doc: "))), "{shown}: {report}");
    }
    is_plain(&report);
    is_plain(&log);
    let (json, _) = scan(&["--json", "--no-sheet"]);
    is_plain(&json);
    let report: serde_json::Value = serde_json::from_str(&json).unwrap();
    let files = report["files"].as_array().unwrap();
    for (name, _) in NAMES {
        assert!(files.iter().any(|file| file["path"] == format!("{name}.png")), "JSON holds the name itself: {json}");
    }
}

#[test]
fn train_shows_no_control_characters_of_names() {
    let place = Place::videos();
    for (name, shown) in NAMES {
        let error = fail(longreel().arg("train").arg(place.path(&format!("{name}.toml"))));
        assert!(error.contains(&format!("{shown}.toml: ")), "{error}");
        is_plain(&error);
        let error = place.error("run", &[&format!("data.path={}", place.path(name).display())]);
        assert!(error.contains(&format!("{shown}: ")), "{error}");
        fs::write(place.path(&format!("clips/{name}.doc")), "not used").unwrap();
    }
    let log = text(&succeed(&mut place.command("run", &["train.steps=1"])).stderr);
    for (_, shown) in NAMES {
        assert!(log.lines().any(|line| line.contains(&format!("{shown}.doc is not used"))), "{shown}: {log}");
    }
    is_plain(&log);
}

#[test]
fn sample_and_the_command_line_show_no_control_characters() {
    let place = Place::videos();
    place.train("run", &["train.steps=1"]);
    for (name, shown) in NAMES {
        let output = place.path(&format!("{name}.png"));
        let printed = text(&succeed(longreel().arg("sample").arg(place.path("run")).arg("-o").arg(&output)).stdout);
        assert_eq!(printed, format!("{}\n", output.display().to_string().replace(name, shown)));
        assert!(output.is_file());
        let nowhere = place.path(&format!("{name}/x.png"));
        let error = fail(longreel().arg("sample").arg(place.path("run")).arg("-o").arg(nowhere));
        assert!(error.contains(shown), "{error}");
        let output = longreel().arg(name).output().unwrap();
        assert_eq!(output.status.code(), Some(2));
        let wrong = |c: &char| c.is_control() && *c != '\n';
        assert_eq!(text(&output.stderr).chars().find(wrong), None, "{}", text(&output.stderr));
    }
}

/// What a command writes to a terminal.
fn on_terminal(command: &str, variables: &[(&str, &str)]) -> String {
    let mut script = Command::new("script");
    for name in ["NO_COLOR", "CLICOLOR", "CLICOLOR_FORCE", "RUST_LOG"] {
        script.env_remove(name);
    }
    // A CI service's variable changes nothing.
    script.args(["-qec", command, "/dev/null"]).env("TERM", "xterm").env("CI", "true").envs(variables.iter().copied());
    text(&succeed(&mut script).stdout)
}

#[test]
fn colours_are_left_out_where_they_are_not_wanted() {
    let place = Place::videos();
    fs::write(place.path("clips/notes.doc"), "not used").unwrap();
    let binary = env!("CARGO_BIN_EXE_longreel");
    let train =
        format!("{binary} train {} --set run.out={}", place.path("config.toml").display(), place.path("run").display());
    let commands = [train.clone(), format!("{binary} --help; {binary} trian || true")];
    let colours = |text: &str| {
        text.match_indices("\x1b[").any(|(at, _)| {
            let end = text[at + 2..].find(|c: char| c.is_ascii_alphabetic());
            end.is_some_and(|end| text[at + 2 + end..].starts_with('m'))
        })
    };
    for command in commands {
        for (variables, wanted) in [
            (&[][..], true),
            (&[("NO_COLOR", "1")][..], false),
            (&[("NO_COLOR", "")], true),
            (&[("CLICOLOR", "0")], false),
            (&[("TERM", "dumb")], false),
        ] {
            let _ = fs::remove_dir_all(place.path("run"));
            let shown = on_terminal(&command, variables);
            assert_eq!(colours(&shown), wanted, "{command} with {variables:?}: {shown:?}");
        }
    }
}

#[test]
fn sampling_shows_its_progress_on_a_terminal() {
    let place = Place::videos();
    place.train("run", &["train.steps=1"]);
    let binary = env!("CARGO_BIN_EXE_longreel");
    let (run, output) = (place.path("run"), place.path("x.mp4"));
    let command = format!("{binary} sample {} --count 3 --steps 300 -o {}", run.display(), output.display());
    let shown = on_terminal(&command, &[]);
    assert!(shown.contains("clips 1 to 3 of 3  step 0/300") && shown.contains("/300  ETA "), "{shown:?}");
    assert!(shown.ends_with(&format!("{}\r\n", place.path("x-2.mp4").display())), "{shown:?}");
    // No line that cannot be renewed, and none in a file.
    let forced = format!("{command} --force");
    assert!(!on_terminal(&forced, &[("TERM", "dumb")]).contains("step "));
    assert!(!text(&succeed(Command::new("sh").args(["-c", &forced])).stderr).contains("step "));
}

#[test]
fn log_lines_begin_with_the_time_of_day_in_utc() {
    let place = Place::videos();
    let time = || {
        let output = Command::new("date").args(["-u", "+%Y-%m-%dT%H:%M:%SZ"]).output().unwrap();
        text(&output.stdout).trim().to_owned()
    };
    let start = time();
    let log = text(&succeed(&mut place.command("run", &["train.steps=1"])).stderr);
    let end = time();
    let lines: Vec<&str> = log.lines().filter(|line| !line.starts_with("  ")).collect();
    assert!(lines.len() > 3, "{log}");
    for line in lines {
        let (stamp, rest) = line.split_at(end.len());
        assert!(*start <= *stamp && *stamp <= *end, "{start}, {line}, {end}");
        assert!(rest.starts_with("  INFO ") || rest.starts_with("  WARN "), "{line}");
    }
    // One unit for memory, and plurals that are right.
    assert!(log.contains(" GiB of model state a rank") && log.contains(", 1 rank (1 data x 1 sequence)"), "{log}");
}
