//! Completions and manual pages.

use crate::train::{longreel, succeed, text};
use std::fs;
use std::process::{Command, Stdio};

const COMMANDS: [&str; 6] = ["train", "sample", "encode", "decode", "plan", "watch"];

#[test]
fn completions_are_scripts_that_shells_can_read() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = text(&succeed(longreel().args(["completions", shell])).stdout);
        for command in COMMANDS {
            assert!(script.contains(command), "{shell} lacks {command}");
        }
        assert!(script.contains("--resume") || script.contains("-l resume"), "{shell} lacks an option of train");
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("longreel.bash");
    fs::write(&file, succeed(longreel().args(["completions", "bash"])).stdout).unwrap();
    let complete = format!(
        "source {} && COMP_WORDS=(longreel tr) COMP_CWORD=1 && _longreel longreel tr longreel && echo ${{COMPREPLY[@]}}",
        file.display()
    );
    let done = Command::new("bash").args(["-c", &complete]).stderr(Stdio::inherit()).output().unwrap();
    assert_eq!(text(&done.stdout).trim(), "train");
    let refused = longreel().args(["completions", "tcsh"]).output().unwrap();
    assert_eq!(refused.status.code(), Some(2));
    assert!(text(&refused.stderr).contains("bash, elvish, fish, powershell, zsh"));
}

#[test]
fn manual_pages_name_every_command() {
    let page = text(&succeed(longreel().arg("man")).stdout);
    assert!(page.starts_with(".ie") && page.contains(".SH SYNOPSIS"), "{}", &page[..page.len().min(200)]);
    let folder = tempfile::tempdir().unwrap();
    succeed(longreel().arg("man").arg("-o").arg(folder.path().join("man1")));
    for command in COMMANDS {
        assert!(page.contains(&format!("longreel\\-{command}")), "the page does not name {command}");
        let own = fs::read_to_string(folder.path().join(format!("man1/longreel-{command}.1"))).unwrap();
        assert!(own.contains(".SH OPTIONS"), "{command}");
    }
    assert!(folder.path().join("man1/longreel.1").exists());
}
