//! A PNG written from top to bottom while its lines come in, so that a large picture is never whole in memory.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};

use crate::files::{NewFile, failed};
use crate::terminal::counted;
use crate::{Error, Result, bail};

/// Writes an RGB picture of 8 bits a channel as its lines come.
///
/// The file has its temporary name until [`finish`](Self::finish); a writer dropped before that leaves nothing behind,
/// and what had the name before is as it was.
pub struct PngWriter {
    /// Bytes of a line.
    line: usize,
    /// Lines still to come.
    left: usize,
    /// Dropped before `file` is given its name, as it has a handle of it.
    stream: png::StreamWriter<'static, FailureRecorder>,
    trouble: Arc<AtomicI32>,
    file: NewFile,
}

/// A file whose first failure is remembered: the PNG library writes its last bytes while it is dropped, and says
/// nothing if that fails.
struct FailureRecorder {
    file: File,
    /// The system's number of the error; 0: none.
    trouble: Arc<AtomicI32>,
}

impl Write for FailureRecorder {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes).inspect_err(|e| {
            if e.kind() != io::ErrorKind::Interrupted {
                self.trouble.store(e.raw_os_error().unwrap_or(-1), Ordering::Relaxed);
            }
        })
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl PngWriter {
    /// Starts the file `path` for a picture of `height` x `width` pixels.
    ///
    /// # Errors
    /// The picture has no pixels or is too large for a PNG; the file cannot be written.
    pub fn create(path: &Path, height: usize, width: usize) -> Result<Self> {
        let most = i32::MAX as usize; // PNG's own limit
        if height == 0 || width == 0 || height > most || width > most {
            bail!(Data, "{}: a PNG cannot have {width}x{height} pixels", path.display())
        }
        let file = NewFile::begin(path)?;
        let trouble = Arc::new(AtomicI32::new(0));
        let handle = file.file().try_clone().map_err(|e| failed(path, e))?;
        let watched = FailureRecorder { file: handle, trouble: trouble.clone() };
        let mut encoder = png::Encoder::new(watched, width as u32, height as u32);
        encoder.set_color(png::ColorType::Rgb);
        encoder.set_depth(png::BitDepth::Eight);
        encoder.set_compression(png::Compression::Fast);
        encoder.set_filter(png::Filter::Adaptive);
        let stream = encoder.write_header().and_then(|writer| writer.into_stream_writer_with_size(1 << 20));
        let stream = stream.map_err(|e| failing(path, e))?;
        Ok(Self { line: width * 3, left: height, stream, trouble, file })
    }

    /// Appends `lines`, [n, width, 3].
    ///
    /// # Errors
    /// They are not whole lines, or more than the picture has; the file cannot be written, for example because the disk
    /// is full.
    pub fn push(&mut self, lines: &[u8]) -> Result<()> {
        let count = lines.len() / self.line;
        if !lines.len().is_multiple_of(self.line) || count > self.left {
            let (path, bytes, line) = (self.file.target().display(), lines.len(), self.line);
            bail!(Shape, "{path}: {bytes} bytes are not lines of {line} bytes, of which {} are to come", self.left)
        }
        self.stream
            .write_all(lines)
            .map_err(|e| failed(self.file.target(), system_error(&self.trouble).unwrap_or(e)))?;
        self.left -= count;
        Ok(())
    }

    /// Completes the file and gives it its name.
    ///
    /// # Errors
    /// Lines are missing; the file cannot be written.
    pub fn finish(self) -> Result<()> {
        let Self { left, stream, trouble, file, .. } = self;
        if left > 0 {
            let missing = counted(left, "line of the picture is", "lines of the picture are");
            bail!(Shape, "{}: {missing} missing", file.target().display())
        }
        let finished = stream.finish();
        if let Some(e) = system_error(&trouble) {
            return Err(failed(file.target(), e));
        }
        finished.map_err(|e| failing(file.target(), e))?;
        file.publish()
    }
}

/// The system's error that was remembered; the PNG library wraps its own around it, which hides what kind it is.
fn system_error(trouble: &AtomicI32) -> Option<io::Error> {
    match trouble.load(Ordering::Relaxed) {
        0 => None,
        code => Some(io::Error::from_raw_os_error(code)),
    }
}

/// An error of the PNG library about `path`.
fn failing(path: &Path, error: png::EncodingError) -> Error {
    match error {
        png::EncodingError::IoError(e) => failed(path, e),
        other => Error::Data(format!("{}: {other}", path.display())),
    }
}
