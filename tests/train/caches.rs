//! Folders of caches that cannot be used, or only in part: read-only, full, with what a kill has left, of another VAE;
//! and what is read of an entry.

use super::latents::{cache, check, entries};
use super::{Place, fail, finish, longreel, succeed, text};
use longreel::data::{ClipOptions, ClipRows, Dataset, FrameRegion};
use longreel::encode::cache::{LatentCache, VaeKey};
use longreel::files::Header;
use longreel::vae::{Frame, VaeWeights};
use std::fs;
use std::ops::Range;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, SystemTime};
use tempfile::TempDir;

/// The same command for a process that permissions count for: root's do, but for what it may do in any case. None where
/// that cannot be had.
fn bound_by_permissions(command: &Command) -> Option<Command> {
    let mut bound = Command::new("env");
    if rustix::process::geteuid().is_root() {
        let drop = ["--bounding-set", "-dac_override,-dac_read_search"];
        if !Command::new("setpriv").args(drop).arg("true").status().is_ok_and(|status| status.success()) {
            println!("skipped: root's powers cannot be dropped here");
            return None;
        }
        bound = Command::new("setpriv");
        bound.args(drop);
    }
    bound.arg(command.get_program()).args(command.get_args()).env_remove("RUST_LOG");
    Some(bound)
}

#[test]
fn a_read_only_cache_is_refused_before_work_unless_all_is_there() {
    let place = Place::latents();
    let folder = place.path("cache");
    fs::create_dir(&folder).unwrap();
    let read_only = |mode: u32| fs::set_permissions(&folder, fs::Permissions::from_mode(mode)).unwrap();
    read_only(0o500);
    let Some(mut train) = bound_by_permissions(&place.command("run", &["train.steps=1"])) else { return };
    let said = fail(&mut train);
    let wanted = format!("vae.cache: {}: cannot be written to (Permission denied", folder.display());
    assert!(said.contains(&wanted) && said.ends_with("; name another folder"), "{said}");
    assert!(!place.path("run").exists() && fs::read_dir(&folder).unwrap().count() == 0);
    let below = format!("vae.cache={}", folder.join("below").display());
    let said = fail(&mut bound_by_permissions(&cache(&place, &[&below])).unwrap());
    assert!(said.contains("cache/below: cannot be written to"), "{said}");
    // A whole one that somebody shares need not be written to.
    read_only(0o700);
    succeed(&mut cache(&place, &[]));
    read_only(0o500);
    succeed(&mut bound_by_permissions(&place.command("run", &["train.steps=1"])).unwrap());
    assert_eq!(check(&place, &[]), [5, 0, 0, 0]);
    read_only(0o700);
}

#[test]
fn what_is_no_folder_is_no_cache() {
    let place = Place::latents();
    fs::write(place.path("file"), "mine").unwrap();
    for (name, reason) in [("file", "is not a folder; name another one"), ("file/below", "cannot be written to")] {
        let name = place.path(name);
        let said = fail(&mut cache(&place, &[&format!("vae.cache={}", name.display())]));
        assert!(said.starts_with(&format!("vae.cache: {}: {reason}", name.display())), "{said}");
    }
    assert_eq!(fs::read(place.path("file")).unwrap(), b"mine");
}

/// A limit on the size of files stands in for a full disk.
#[test]
fn a_full_cache_leaves_no_part_of_an_entry() {
    let place = Place::latents();
    let command = cache(&place, &[]);
    let mut limited = Command::new("sh");
    limited.args(["-c", "trap '' XFSZ; ulimit -f 1; exec \"$@\"", "sh"]).env_remove("RUST_LOG");
    let said = fail(limited.arg(command.get_program()).args(command.get_args()));
    assert!(said.contains("cache/") && said.contains(".safetensors: File too large"), "{said}");
    assert!(said.contains("nothing was overwritten"), "{said}");
    assert!(entries(&place).is_empty());
    let names = fs::read_dir(place.path("cache")).unwrap().map(|file| file.unwrap().file_name());
    assert!(names.into_iter().all(|name| name == "sources.json"), "something half-written is left");
    succeed(&mut cache(&place, &[]));
    assert_eq!(check(&place, &[]), [5, 0, 0, 0]);
}

/// The same on a disk that really is full, where the system lets us mount a small one: what was encoded is found again.
#[test]
fn a_small_disk_keeps_what_was_encoded() {
    let place = Place::latents();
    let disk = place.path("disk");
    fs::create_dir(&disk).unwrap();
    let mounted = |script: &str, args: &[&str]| {
        let folder = format!("vae.cache={}", disk.display());
        let command = cache(&place, &[&[folder.as_str()][..], args].concat());
        let mut unshare = Command::new("unshare");
        let script = format!("mount -t tmpfs -o size=16k tmpfs \"$DISK\" || exit 77; {script}");
        unshare.args(["-rm", "sh", "-c", &script]);
        unshare.arg("sh").arg(command.get_program()).args(command.get_args()).env("DISK", &disk).env_remove("RUST_LOG");
        let child = unshare.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().ok()?; // no `unshare` here
        let refused = |output: &Output| output.status.code() == Some(77) || text(&output.stderr).contains("unshare:");
        Some(finish(child)).filter(|output| !refused(output))
    };
    // Files take 4 KiB each: three entries beside the list of sources, or four.
    let Some(output) = mounted(
        "\"$@\"; echo \"code $?\"; ls -A \"$DISK\"; mount -o remount,size=1m \"$DISK\"; \"$@\"; echo \"code $?\"",
        &[],
    ) else {
        return println!("skipped: no disk can be mounted here");
    };
    let (said, printed) = (text(&output.stderr), text(&output.stdout));
    let (first, then) = printed.split_once("code 1\n").unwrap_or_else(|| panic!("{printed}{said}"));
    assert!(first.is_empty() && then.contains("5 clips encoded\ncode 0"), "{printed}{said}");
    let there = then.lines().filter(|line| line.ends_with(".safetensors")).count();
    assert!((1..5).contains(&there) && !then.contains("longreel-tmp"), "{printed}");
    assert!(said.contains("No space left on device") && said.contains("make room and try again"), "{said}");
    let again = said.matches(" to encode, ").count();
    assert!(said.contains("4 clips of 4 to encode, 1.1 KiB") && again > 1, "{said}");
    // What has no room as a whole is not begun.
    let output = mounted("exec \"$@\"", &["data.crop=random", "data.variants=16"]).unwrap();
    let said = text(&output.stderr);
    assert!(said.contains(" are free, the latents take 18.0 KiB; name another folder as vae.cache"), "{said}");
}

#[test]
fn what_a_kill_has_left_is_no_entry() {
    let place = Place::latents();
    let said = text(&succeed(&mut cache(&place, &[])).stderr);
    assert!(said.contains("4 clips of 4 to encode, 1.1 KiB") && said.contains("1 clip of 1 to encode"), "{said}");
    let (entry, _) = entries(&place).swap_remove(0);
    let bytes = fs::read(&entry).unwrap();
    let name = entry.file_name().unwrap().to_str().unwrap();
    let half = entry.with_file_name(format!(".{name}-Ab12Cd.longreel-tmp"));
    fs::write(&half, &bytes[..bytes.len() / 2]).unwrap();
    fs::remove_file(&entry).unwrap();
    assert_eq!(check(&place, &[]), [4, 1, 0, 0], "somebody may be writing it just now");
    let hours_ago = SystemTime::now() - Duration::from_secs(2 * 3600);
    fs::File::options().write(true).open(&half).unwrap().set_modified(hours_ago).unwrap();
    assert_eq!(check(&place, &[]), [4, 1, 0, 1]);
    succeed(&mut cache(&place, &[]));
    assert_eq!(fs::read(&entry).unwrap(), bytes);
}

#[test]
fn a_cache_of_another_vae_is_not_used_and_stays() {
    let place = Place::latents();
    succeed(&mut cache(&place, &[]));
    let of_one = entries(&place);
    let other = TempDir::new().unwrap();
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/vae/vae21/vae");
    for name in ["config.json", "diffusion_pytorch_model.safetensors"] {
        fs::copy(golden.join(name), other.path().join(name)).unwrap();
    }
    let weights = other.path().join("diffusion_pytorch_model.safetensors");
    let mut bytes = fs::read(&weights).unwrap();
    let header = Header::read(&bytes[..], bytes.len() as u64).unwrap();
    let bias = header.tensors.iter().find(|tensor| tensor.name == "encoder.conv_in.bias").unwrap();
    bytes[bias.start as usize..][..bias.bytes as usize].fill(0);
    fs::write(&weights, bytes).unwrap();
    let from = format!("vae.from={}", other.path().display());
    assert_eq!(check(&place, &[&from]), [0, 5, 5, 0]);
    let [one, two] = [&[][..], &[&from[..]]].map(|args| place.train(&format!("run {}", args.len()), args)[0].loss);
    assert!((one - two).abs() > 1e-9, "both VAEs have the loss {one}");
    assert!(of_one.iter().all(|entry| entries(&place).contains(entry)));
    assert_eq!((check(&place, &[&from]), check(&place, &[])), ([5, 0, 5, 0], [5, 0, 5, 0]));
    // Another kind of VAE has another grid.
    let two = golden.parent().unwrap().with_file_name("vae22").join("vae");
    let said = fail(&mut cache(&place, &[&format!("vae.from={}", two.display())]));
    assert!(said.contains("the nearest to 48x32x5 is 64x32x5"), "{said}");
}

/// A network of other channels than the VAE's is refused by what fills a cache and what plans, too.
#[test]
fn a_vae_of_other_channels_than_the_network_is_refused() {
    let place = Place::latents();
    let network = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/batch/transformer");
    let config = fs::read_to_string(place.path("config.toml")).unwrap();
    let (before, rest) = config.split_once("[model]").unwrap();
    let (_, after) = rest.split_once("[train]").unwrap();
    let config = format!("{before}[model]\nfrom = \"{}\"\n[train]{after}", network.display());
    fs::write(place.path("config.toml"), config).unwrap();
    let mut plan = longreel();
    plan.arg("plan").arg(place.path("config.toml")).args(["--tflops=1", "--bandwidth=1"]);
    for command in [&mut place.command("run", &[]), &mut cache(&place, &[]), &mut plan] {
        let said = fail(command);
        assert!(said.contains("training is on latents of vae.from, which have 3"), "{said}");
    }
    assert!(!place.path("cache").exists());
}

/// Of an entry only the region that is asked for is read: the rest may be damaged. Its rows are those of the whole.
#[test]
fn only_the_region_of_a_ranks_tokens_is_read() {
    let place = Place::latents();
    let vae = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/vae/vae21/vae");
    let config = VaeWeights::open(&vae).unwrap().config;
    let dataset = Dataset::survey(&ClipOptions::new([5, 32, 48]), &place.path("clips/a.mp4")).unwrap();
    let key = VaeKey { sha256: "of nothing".into(), bf16: false };
    let cache = LatentCache::open(&place.path("cache"), &dataset, &key, &config, None).unwrap();
    cache.prepare().unwrap();
    let value = |t: usize, i: usize| (100 * t + i) as f32;
    let frames = [0, 1].map(|t| Frame::new([4, 6, 3], (0..4 * 6 * 3).map(|i| value(t, i)).collect()));
    cache.write(0, &frames).unwrap();
    let frame = |frames| FrameRegion::whole(frames, 4);
    let whole = cache.read(0, &frame(0..2)).unwrap();
    // Every run of the 12 tokens.
    let (grid, patch) = ([2, 2, 3], [1, 2, 2]);
    let rows = |latents: &dyn ClipRows, tokens: Range<usize>| {
        let mut rows = vec![f32::NAN; tokens.len() * 12];
        latents.clean_rows(patch, tokens, &mut rows).map(|()| rows)
    };
    let all = rows(&whole, 0..12).unwrap();
    for (start, end) in (0..12).flat_map(|start| (start + 1..13).map(move |end| (start, end))) {
        let region = FrameRegion::of_tokens(start..end, grid, patch);
        let part = cache.read(0, &region).unwrap();
        assert_eq!(part.values.len(), 3 * region.frames.len() * region.lines.len() * 6);
        assert_eq!(rows(&part, start..end).unwrap(), all[start * 12..end * 12], "{start}..{end}");
    }
    let upper = cache.read(0, &FrameRegion { frames: 0..1, lines: 0..2 }).unwrap();
    assert!(refusal!(Shape, rows(&upper, 2..4)).contains("beyond frames 0..1, lines 0..2, which are held"));
    let path = place.path("cache").join(format!("{}.safetensors", cache.entries()[0].key));
    let mut bytes = fs::read(&path).unwrap();
    let start = Header::read(&bytes[..], bytes.len() as u64).unwrap().tensors[0].start as usize;
    // Channel by channel, then frame by frame.
    for c in 0..3 {
        bytes[start + 2 * (2 * c + 1) * 24..][..2 * 24].fill(0xff);
    }
    fs::write(&path, bytes).unwrap();
    let first = cache.read(0, &frame(0..1)).unwrap();
    for c in 0..3 {
        assert_eq!(first.values[c * 24..][..24], whole.values[2 * c * 24..][..24]);
        assert_eq!(first.values[c * 24 + 5], value(0, 3 * 5 + c));
    }
    let said = refusal!(Data, cache.read(0, &frame(1..2)));
    assert!(said.contains("not finite; delete it, and it is encoded again"), "{said}");
    assert!(cache.read(0, &frame(1..1)).unwrap().values.is_empty());
}
