//! What is written over: regular files, and nothing else. A device, a pipe, a socket, a folder or a symbolic link under
//! the name of a result stays what it is, and the error says so; folders on the way may be symbolic links.

use crate::train::{Place, fail, longreel, succeed};
use longreel::data::write::{Container, PngWriter, VideoWriter, write_image, write_video};
use longreel::files::{NewFolder, atomic_write, check_target, write_tensors};
use longreel::observe::metrics::MetricsLog;
use std::fs::{self, FileType};
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::tempdir;

/// One of each kind that must not be written over, with the error's word for it.
fn odd_ones(folder: &Path, extension: &str) -> Vec<(PathBuf, &'static str)> {
    let path = |name: &str| folder.join(format!("{name}.{extension}"));
    fs::write(folder.join("mine"), "mine").unwrap();
    symlink(folder.join("mine"), path("link")).unwrap();
    symlink(folder.join("nowhere"), path("dangling")).unwrap();
    UnixListener::bind(path("socket")).unwrap();
    let mut all = vec![
        (path("link"), "is a symbolic link to "),
        (path("dangling"), "is a symbolic link to "),
        (path("socket"), "is a socket, not a regular file"),
    ];
    let made = |args: &[&str], path: &Path| Command::new(args[0]).arg(path).args(&args[1..]).output();
    assert!(made(&["mkfifo"], &path("pipe")).unwrap().status.success());
    all.push((path("pipe"), "is a pipe, not a regular file"));
    // Like /dev/null; root alone may make one, and not everywhere.
    if made(&["mknod", "c", "1", "3"], &path("device")).is_ok_and(|done| done.status.success()) {
        all.push((path("device"), "is a device, not a regular file"));
    }
    all
}

fn kinds(all: &[(PathBuf, &str)]) -> Vec<FileType> {
    all.iter().map(|(path, _)| fs::symlink_metadata(path).unwrap().file_type()).collect()
}

/// Everything there, by name.
fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn only_regular_files_are_written_over() {
    let pixels = vec![9u8; 16 * 16 * 3];
    type Write<'a> = &'a dyn Fn(&Path) -> longreel::Result<()>;
    let writers: [(&str, Write); 9] = [
        ("json", &|path| atomic_write(path, |out| out.write_all(b"new"))),
        ("safetensors", &|path| write_tensors(path, [("x", vec![1], [0f32])])),
        ("png", &|path| write_image(path, &image::RgbImage::new(4, 4))),
        ("png", &|path| PngWriter::create(path, 4, 4).map(drop)),
        ("mp4", &|path| VideoWriter::create(path, Container::Mp4, 16, 16, 8.0).map(drop)),
        ("mp4", &|path| write_video(path, &pixels, 16, 16, 8.0)),
        ("gif", &|path| write_video(path, &pixels, 16, 16, 8.0)),
        ("jsonl", &|path| MetricsLog::create(path).map(drop)),
        ("jsonl", &|path| MetricsLog::resume(path, 1).map(drop)),
    ];
    for (extension, write) in writers {
        let temp = tempdir().unwrap();
        let all = odd_ones(temp.path(), extension);
        let before = (kinds(&all), names(temp.path()));
        for (path, expected) in &all {
            let error = refusal!(Config, write(path));
            let wanted = format!("{}: {expected}", path.display());
            assert!(error.starts_with(&wanted) && error.contains("not written over"), "{extension}: {error}");
        }
        assert!((kinds(&all), names(temp.path())) == before, "{extension}: something was replaced, or is left");
        assert_eq!(fs::read(temp.path().join("mine")).unwrap(), b"mine", "{extension}");
    }
}

/// Whatever takes the name while the file is written.
#[test]
fn a_link_that_comes_meanwhile_stays() {
    let temp = tempdir().unwrap();
    let path = temp.path().join("f");
    let error = atomic_write(&path, |out| {
        symlink("/dev/null", &path)?;
        out.write_all(b"new")
    });
    assert!(refusal!(Config, error).contains("is a symbolic link to /dev/null, not a regular file"));
    assert_eq!(names(temp.path()), ["f"]);
    assert!(fs::symlink_metadata(&path).unwrap().is_symlink());
}

#[test]
fn a_folder_gives_no_way_to_a_file_nor_a_link_to_a_folder() {
    let temp = tempdir().unwrap();
    let folder = temp.path().join("folder");
    fs::create_dir(&folder).unwrap();
    assert!(refusal!(Config, check_target(&folder)).contains("folder: is a folder, not a regular file"));
    assert!(atomic_write(&folder, |_| Ok(())).is_err());
    fs::create_dir(temp.path().join("empty")).unwrap();
    symlink("empty", temp.path().join("link")).unwrap();
    fs::write(temp.path().join("file"), "mine").unwrap();
    for name in ["link", "file"] {
        let error = refusal!(Config, NewFolder::begin(&temp.path().join(name)));
        assert!(error.contains(&format!("{name}: is not a folder, and is not written over")), "{error}");
    }
    assert_eq!(names(temp.path()), ["empty", "file", "folder", "link"]);
}

#[test]
fn folders_on_the_way_may_be_links() {
    let place = Place::pictures();
    fs::create_dir_all(place.path("disk/runs")).unwrap();
    symlink("disk/runs", place.path("runs")).unwrap();
    assert_eq!(place.train("runs/a", &["train.steps=1"]).len(), 1);
    assert_eq!(place.checkpoints("runs/a"), [1]);
    assert!(
        place.path("disk/runs/a/loss.png").is_file() && fs::symlink_metadata(place.path("runs")).unwrap().is_symlink()
    );
}

#[test]
fn commands_say_so_before_they_work() {
    let place = Place::pictures();
    place.train("run", &["train.steps=1"]);
    let [run, model] = [place.path("run"), place.checkpoint("run", 1, "transformer")];
    for extension in ["png", "mp4", "gif"] {
        let folder = tempdir().unwrap();
        for (path, expected) in odd_ones(folder.path(), extension) {
            let error = fail(longreel().arg("sample").arg(&run).arg("-o").arg(&path));
            assert!(error.contains(expected), "{error}");
            if extension == "png" {
                let mut scan = longreel();
                scan.arg("scan").arg(place.path("clips")).args(["--frames=1", "--height=16", "--width=24", "--sheet"]);
                assert!(fail(scan.arg(&path)).contains(expected));
                // The inputs are never looked for.
                let error = fail(longreel().arg("forward").arg(&model).args(["nowhere", "-o"]).arg(&path));
                assert!(error.contains(expected), "{error}");
            }
        }
    }
    let error = fail(longreel().arg("forward").arg(&model).args(["nowhere", "-o", "/dev/stdout"]));
    assert!(error.starts_with("/dev/stdout: is a symbolic link to "), "{error}");
    let error = fail(longreel().arg("sample").arg(&run).args(["-o", "/dev/stdout"]));
    assert!(error.starts_with("/dev/stdout: is a symbolic link to "), "{error}");
}

/// Its measurements cannot go into a pipe, which nobody reads: the run would wait for ever.
#[test]
fn a_run_whose_metrics_are_a_pipe_is_refused() {
    let place = Place::pictures();
    place.train("run", &["train.steps=1"]);
    fs::remove_file(place.path("run/metrics.jsonl")).unwrap();
    succeed(Command::new("mkfifo").arg(place.path("run/metrics.jsonl")));
    let error = place.error("run", &["train.steps=2", "--resume"]);
    assert!(error.contains("metrics.jsonl: is a pipe, not a regular file"), "{error}");
    assert_eq!(place.checkpoints("run"), [1]);
}
