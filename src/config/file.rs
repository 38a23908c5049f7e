//! A config's text: from a regular file or a pipe, of at most 1 MiB, in UTF-8, or in UTF-16 with a byte-order mark.
//!
//! What else somebody may name instead, a folder of clips, a video, weights, a device without end, is an error at once
//! that says what is wanted. A pipe is what `/dev/stdin` and a shell's `<(...)` are.

use super::example;
use crate::files::{decode_text, expand_home};
use crate::{Error, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

/// The longest config in bytes.
const LONGEST: u64 = 1 << 20;

/// How long a pipe's writer may pause, in seconds.
const PAUSE: i64 = 10;

/// What else a config may be mistaken for.
const WANTED: &str = "a config is a text in TOML (docs/configuration.md): its data.path names the folder of clips, its model.from a \
                      network to start from";

/// The text of the config `path`, in which a leading `~` is the home folder.
///
/// # Errors
/// There is no such file; it is no regular file and no pipe, is longer than 1 MiB, or is no text.
pub fn read_config(path: &Path) -> Result<String> {
    let path = &expand_home(path)?;
    let shown = path.display();
    if path.is_dir() {
        return Err(folder(path));
    }
    if let Some(format @ ("json" | "yaml" | "yml")) = path.extension().and_then(|e| e.to_str())
        && path.exists()
    {
        bail!(Config, "{shown}: is called .{format}; {WANTED}");
    }
    // Without O_NONBLOCK, a named pipe that nobody writes to would keep `open` waiting for ever.
    let nonblocking = rustix::fs::OFlags::NONBLOCK.bits() as i32;
    let file = OpenOptions::new().read(true).custom_flags(nonblocking).open(path).map_err(|e| Error::io(path, e))?;
    let about = file.metadata().map_err(|e| Error::io(path, e))?;
    let kind = about.file_type();
    if !kind.is_file() && !kind.is_fifo() {
        bail!(Config, "{shown}: is a device or socket; {WANTED}");
    }
    let mut bytes = vec![];
    match kind.is_fifo() {
        true => read_pipe(&file, path, &mut bytes)?,
        false => {
            (&file).take(LONGEST + 1).read_to_end(&mut bytes).map_err(|e| Error::io(path, e))?;
        }
    }
    if about.len() > LONGEST || bytes.len() as u64 > LONGEST {
        bail!(Config, "{shown}: is longer than 1 MiB; {WANTED}");
    }
    text(bytes, path)
}

/// Reads a pipe up to its end, or a little more than is allowed.
fn read_pipe(mut pipe: &File, path: &Path, bytes: &mut Vec<u8>) -> Result<()> {
    let shown = path.display();
    let mut piece = [0; 1 << 16];
    while bytes.len() as u64 <= LONGEST {
        match pipe.read(&mut piece) {
            Ok(0) if bytes.is_empty() => bail!(Config, "{shown}: is a pipe that nothing is written to; {WANTED}"),
            Ok(0) => break,
            Ok(n) => bytes.extend(&piece[..n]),
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) if e.kind() == ErrorKind::WouldBlock => {
                let pause = Timespec { tv_sec: PAUSE, tv_nsec: 0 };
                let ready = poll(&mut [PollFd::new(&pipe, PollFlags::IN)], Some(&pause));
                if ready.map_err(|e| Error::io(path, e.into()))? == 0 {
                    bail!(Config, "{shown}: is a pipe whose writer has been silent for {PAUSE} seconds; {WANTED}");
                }
            }
            Err(e) => return Err(Error::io(path, e)),
        }
    }
    Ok(())
}

/// The bytes as text, without a byte-order mark.
fn text(bytes: Vec<u8>, path: &Path) -> Result<String> {
    let shown = path.display();
    match decode_text(bytes) {
        Ok(text) if text.contains('\0') => bail!(Config, "{shown}: it is no text; {WANTED}"),
        Ok(text) => Ok(text),
        Err(reason) => bail!(Config, "{shown}: {reason}; {WANTED}"),
    }
}

/// What to do with a folder, instead of naming it as a config.
fn folder(path: &Path) -> Error {
    let shown = path.display();
    let has = |name: &str| path.join(name).exists();
    Error::Config(if has("config.toml") && has("checkpoints") {
        format!(
            "{shown}: is a run's folder; its config is {}, and --resume goes on with it",
            path.join("config.toml").display()
        )
    } else if has("config.json") || has("model_index.json") || has("state.json") {
        format!("{shown}: is a model's folder; {WANTED}")
    } else {
        let path = if fs::canonicalize(path).is_ok() { path } else { Path::new("clips") };
        let example = example::indented(&format!("{}\n{}", example::data(path), example::MODEL));
        format!(
            "{shown}: is a folder; {WANTED}. If clips are in this folder, begin with a file run.toml, and \
             docs/training.md:{example}"
        )
    })
}
