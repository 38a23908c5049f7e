//! A room of `src` uses rooms below it and none above, so that it can be read, tested and changed without them. And the
//! way of a clip through all of them stays short enough to be read in one go.

use std::fs;
use std::path::{Path, PathBuf};

/// From the top. `main.rs` and `lib.rs` are no rooms.
const FLOORS: [&str; 27] = [
    "cli",
    "train",
    "plan",
    "sample",
    "config",
    "batch",
    "state",
    "engine",
    "lora",
    "model",
    "encode",
    "vae",
    "text",
    "diffusion",
    "data",
    "attention",
    "parallel",
    "ops",
    "cuda",
    "simd",
    "allocator",
    "observe",
    "hub",
    "files",
    "rng",
    "error",
    "terminal",
];

fn floor(room: &str) -> usize {
    FLOORS.iter().position(|name| *name == room).unwrap_or_else(|| panic!("src/{room} is not in FLOORS"))
}

/// The rooms that a source file names after `crate::`, comments apart.
fn used(source: &str) -> Vec<String> {
    let code: String = source.lines().map(|line| format!("{}\n", line.split("//").next().unwrap_or(""))).collect();
    let mut rooms = vec![];
    for (i, _) in code.match_indices("crate::") {
        let rest = &code[i + "crate::".len()..];
        match rest.strip_prefix('{') {
            Some(group) => rooms.extend(first_names(group)),
            None => rooms.push(name(rest)),
        }
    }
    rooms.retain(|room| room.chars().next().is_some_and(char::is_lowercase) && room != "bail");
    rooms
}

/// The first name of each path of `a::b, c::{d, e}, f}...`.
fn first_names(group: &str) -> Vec<String> {
    let (mut names, mut depth, mut begins) = (vec![], 0, true);
    for (i, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => begins = true,
            c if begins && depth == 0 && !c.is_whitespace() => {
                names.push(name(&group[i..]));
                begins = false;
            }
            _ => {}
        }
    }
    names
}

fn name(text: &str) -> String {
    text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
}

fn sources(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<PathBuf> =
        entries.flat_map(|path| if path.is_dir() { sources(&path) } else { vec![path] }).collect();
    files.retain(|path| path.extension().is_some_and(|kind| kind == "rs"));
    files
}

/// Uses of a room above, as "src/ops/cast.rs uses train".
fn climbs(file: &str, source: &str) -> Vec<String> {
    let room = file.split('/').next().unwrap().trim_end_matches(".rs");
    let above = |used: &String| floor(used) < floor(room);
    used(source).into_iter().filter(above).map(|used| format!("src/{file} uses {used}")).collect()
}

#[test]
fn no_room_uses_one_above_it() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let files = sources(&src);
    assert!(files.len() > 150, "{} files", files.len());
    let mut found = vec![];
    for path in files {
        let file = path.strip_prefix(&src).unwrap().to_str().unwrap().to_owned();
        if file != "main.rs" && file != "lib.rs" {
            found.extend(climbs(&file, &fs::read_to_string(&path).unwrap()));
        }
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn a_climb_is_found_wherever_it_stands() {
    let climbing =
        ["use crate::train::Job;", "use crate::{Result, files::{self, x}, train};", "fn f() { crate::train::run() }"];
    for source in climbing {
        assert_eq!(climbs("ops/cast.rs", source), ["src/ops/cast.rs uses train"], "{source}");
    }
    for source in
        ["// crate::train", "use crate::files;", "use crate::{Error, bail, files::{train, x}};", "use super::train;"]
    {
        assert!(climbs("ops/cast.rs", source).is_empty(), "{source}");
    }
}

/// The files that `design` lists as the way of a clip, as "12. `engine/mod.rs`: ...".
fn way_of_a_clip(design: &str) -> Vec<&str> {
    let listed = design.lines().filter_map(|line| {
        let (number, rest) = line.split_once(". `")?;
        let (file, _) = rest.split_once("`: ")?;
        (number.parse::<usize>().is_ok() && file.ends_with(".rs")).then_some(file)
    });
    listed.collect()
}

#[test]
fn the_way_of_a_clip_stays_short() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let design = fs::read_to_string(root.join("docs/design.md")).unwrap();
    let files = way_of_a_clip(&design);
    assert!((18..=22).contains(&files.len()), "{} files: {files:?}", files.len());
    let lines = |file: &&str| fs::read_to_string(root.join("src").join(file)).unwrap().lines().count();
    let count: usize = files.iter().map(lines).sum();
    assert!(count <= 3600, "{count} lines in {files:?}; what a clip does not pass through may be a file of its own");
}
