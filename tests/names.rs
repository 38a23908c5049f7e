//! Tests that src/ does not go back to homely names, so that a reader meets the field's words only: each old name has a
//! successor here, and no identifier of the code may be an old one.

use std::path::Path;

/// Old names that nothing else is called, with what they became.
const GONE: &[(&str, &str)] = &[
    ("Keeper", "ParamHooks"),
    ("with_keeper", "with_hooks"),
    ("Party", "ControlPlane"),
    ("Meeting", "PendingCall"),
    ("Offer", "CallArgs"),
    ("Beat", "Heartbeat"),
    ("Spent", "StepTimes"),
    ("Watched", "Metered"),
    ("with_watch", "with_meter"),
    ("minding", "with_monitor"),
    ("Pace", "EtaEstimator"),
    ("Placement", "LauncherEnv"),
    ("Processors", "CpuAffinity"),
    ("conduct", "run_to_exit"),
    ("in_turn", "rank0_first"),
    ("settle", "finish_together"),
    ("with_unit!", "with_isa!"),
    ("on_unit!", "on_isa!"),
    ("Tail", "Epilogue"),
    ("Fresh", "UninitVec"),
    ("Lanes", "OrderedSums"),
    ("Lane", "CopyStream"),
    ("Stored", "Element"),
    ("Ahead", "Prefetch"),
    ("Orders", "Shuffles"),
    ("Prompt", "Conditioning"),
    ("PATIENCE", "a constant named for what it limits"),
];

/// Old names that are words for something else elsewhere: what may not be defined, with what it became.
const UNDEFINED: &[(&str, &str)] = &[
    ("struct Watch", "StepMeter or FailureDetector"),
    ("enum Way", "Traffic"),
    ("struct Job", "TorchrunEnv or RunSetup"),
    ("enum Path", "Isa"),
    ("struct Held", "PackedGuard or StateBytes"),
    ("struct Weights", "TrainState or WeightMatrix"),
    ("struct Pieces", "Schedule"),
    ("struct Band", "RowBlock"),
    ("struct Cut", "Windows"),
    ("struct Picture", "ImageReader"),
    ("fn speaks", "is_reporter"),
    ("fn aside", "dup"),
    ("fn told", "report_once"),
    ("fn watched", "metered"),
    ("fn mind", "monitor"),
    ("fn hold", "pin_packed"),
    ("fn level", "u8_to_unit"),
    ("fn prompt", "conditioning"),
    ("mod keeper", "hooks"),
    ("mod party", "control"),
    ("mod lines", "links"),
    ("mod meeting", "rendezvous"),
    ("mod watched", "metered"),
    ("mod pace", "monitor"),
    ("mod job", "setup"),
    ("mod place", "rank_info"),
    ("mod placement", "launcher_env"),
    ("mod processors", "cpu_affinity"),
    ("mod fresh", "uninit_vec"),
    ("mod lane", "ordered_sums"),
    ("mod pieces", "schedule"),
    ("mod band", "row_block"),
    ("mod ahead", "prefetch"),
    ("mod level", "u8_to_unit"),
    ("mod cut", "windows"),
    ("mod whole", "truncation"),
    ("mod still", "fit_image"),
    ("mod picture", "image_reader"),
    ("mod sheet", "contact_sheet"),
    ("mod av", "ffmpeg"),
    ("mod work", "flops"),
    ("mod flop", "flops"),
];

/// Whether `code` has `name` where no identifier goes on before or after it.
fn has(code: &str, name: &str) -> bool {
    let word = |c: char| c.is_alphanumeric() || c == '_';
    code.match_indices(name).any(|(start, _)| {
        let (before, after) = (&code[..start], &code[start + name.len()..]);
        !before.ends_with(word) && !after.starts_with(word)
    })
}

/// The old names in a file's code, as "line: old name is now new name". Comments may use any word.
fn old_names(text: &str) -> Vec<String> {
    let lines = text.lines().map(|line| line.split("//").next().unwrap_or_default()).enumerate();
    let found = |(i, code): (usize, &str)| {
        let old = GONE.iter().chain(UNDEFINED).filter(|(name, _)| has(code, name));
        old.map(|(name, new)| format!("{}: {name} is now {new}", i + 1)).collect::<Vec<_>>()
    };
    lines.flat_map(found).collect()
}

#[test]
fn src_uses_no_old_name() {
    let (mut files, mut found) = (0, vec![]);
    for entry in walkdir::WalkDir::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("src")) {
        let entry = entry.unwrap();
        if entry.path().extension().is_some_and(|extension| extension == "rs") {
            let text = std::fs::read_to_string(entry.path()).unwrap();
            found.extend(old_names(&text).into_iter().map(|name| format!("{}:{name}", entry.path().display())));
            files += 1;
        }
    }
    assert!(files > 100, "only {files} files were read");
    assert!(found.is_empty(), "old names are back:\n{}", found.join("\n"));
}

#[test]
fn an_old_name_is_found_as_an_identifier_only() {
    assert_eq!(old_names("use crate::x;\nstruct Keeper<T>(T);"), ["2: Keeper is now ParamHooks"]);
    assert_eq!(old_names("pub(super) mod av;"), ["1: mod av is now ffmpeg"]);
    assert_eq!(old_names("with_unit!(isa, S => run())"), ["1: with_unit! is now with_isa!"]);
    assert!(old_names("let goalkeeper = Housekeeper::new(); // a Keeper\nmod average; fn with_unit() {}").is_empty());
}
