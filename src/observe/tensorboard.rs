//! Event files for TensorBoard: scalars, images and text by tag and step. What is before a tag's first `/` is the group
//! that TensorBoard shows it in.
//!
//! A file is a row of TFRecords: length (u64), its checksum, the bytes, their checksum, all little-endian; a checksum
//! is a CRC-32C, rotated right by 15 bits plus a constant (tensorflow/core/lib/hash/crc32c.h). The bytes are an `Event`
//! in protocol buffers (tensorflow/core/util/event.proto), few enough fields to write by hand. Text is a tensor of one
//! string that is marked as the text plugin's (tensorboard/compat/proto/summary.proto, tensorboard/plugins/text).

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::files::failed;
use crate::{Error, Result};

/// What a file's name begins with; TensorBoard looks for it.
const PREFIX: &str = "events.out.tfevents.";
/// The last second, since 1970, whose name still sorts as its number does.
const LATEST: f64 = 9_999_999_999.0;

/// TensorFlow's number for strings, and TensorBoard's for summaries that are tensors.
const DT_STRING: u64 = 7;
const DATA_CLASS_TENSOR: u64 = 2;

/// TensorFlow's number for pictures in RGB.
const RGB: u64 = 3;

/// The tag of a measurement of [`Record`](super::metrics::Record), and what its value is multiplied by: bytes are shown
/// as GiB.
pub fn tag(name: &str) -> (String, f64) {
    const GIB: f64 = 1.0 / (1u64 << 30) as f64;
    if let Some(part) = name.strip_prefix("seconds_") {
        return (format!("time/{part}"), 1.0);
    }
    if let Some(way) = name.strip_prefix("bytes_") {
        return (format!("moved_gib/{way}"), GIB);
    }
    if let Some(quantile) = name.strip_prefix("heldout_") {
        return (format!("validation/{quantile}"), 1.0);
    }
    match name {
        "loss" => ("loss/train".to_owned(), 1.0),
        "heldout" => ("loss/validation".to_owned(), 1.0),
        "grad_norm" | "lr" => (format!("optimizer/{name}"), 1.0),
        "seconds" => ("time/step".to_owned(), 1.0),
        "waited" => ("time/share_waited_for_clips".to_owned(), 1.0),
        "tokens_per_s" => ("time/tokens_per_s".to_owned(), 1.0),
        "peak_rss" => ("memory/peak_gib".to_owned(), GIB),
        other => (format!("run/{other}"), 1.0),
    }
}

/// Appends events to a new file of a TensorBoard log folder.
#[derive(Debug)]
pub struct EventWriter {
    file: File,
    path: PathBuf,
    /// Time of the last event in seconds since 1970; the clock may go back, events do not.
    time: f64,
}

impl EventWriter {
    /// Starts a file in `folder`, which is made if need be. TensorBoard reads all files of a folder as one run, so a
    /// run that resumes after `resumed` steps says so, and TensorBoard forgets the later steps of the files before. The
    /// file sorts after all that are there, whatever the clock says, for TensorBoard takes them in the order of their
    /// names.
    pub fn create(folder: &Path, resumed: Option<u64>) -> Result<Self> {
        std::fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
        let time = now().max(newest(folder)?).min(LATEST);
        let path = folder.join(format!("{PREFIX}{:010}.longreel", time as u64));
        let file = OpenOptions::new().write(true).create_new(true).open(&path).map_err(|e| failed(&path, e))?;
        let mut writer = Self { file, path, time };
        writer.event(0, &field_bytes(3, b"brain.Event:2"))?; // Event.file_version
        if let Some(step) = resumed {
            let start = field_varint(1, 1); // SessionLog.status = START
            writer.event(step + 1, &field_bytes(7, &start))?; // Event.session_log: steps from here on come anew
        }
        Ok(writer)
    }

    /// Adds a picture of `height` x `width` pixels to `step`, `encoded` as a PNG, or as a GIF, which TensorBoard plays.
    pub fn image(&mut self, step: u64, tag: &str, [height, width]: [usize; 2], encoded: &[u8]) -> Result<()> {
        let mut image = field_varint(1, height as u64); // Summary.Image.height, width, colorspace, encoded_image_string
        image.extend(field_varint(2, width as u64));
        image.extend(field_varint(3, RGB));
        image.extend(field_bytes(4, encoded));
        self.value(step, tag, &field_bytes(4, &image)) // Summary.Value.image
    }

    /// Adds `text`, in Markdown, to `step`.
    pub fn text(&mut self, step: u64, tag: &str, text: &str) -> Result<()> {
        let mut tensor = field_varint(1, DT_STRING); // TensorProto.dtype
        let one = field_varint(1, 1); // TensorShapeProto.Dim.size
        tensor.extend(field_bytes(2, &field_bytes(2, &one))); // TensorProto.tensor_shape, of one dim
        tensor.extend(field_bytes(8, text.as_bytes())); // TensorProto.string_val
        let mut metadata = field_bytes(1, &field_bytes(1, b"text")); // SummaryMetadata.plugin_data.plugin_name
        metadata.extend(field_varint(4, DATA_CLASS_TENSOR)); // SummaryMetadata.data_class
        let value = [field_bytes(8, &tensor), field_bytes(9, &metadata)].concat(); // Summary.Value.tensor, metadata
        self.value(step, tag, &value)
    }

    /// Writes an event with one value, of which `fields` is all but the tag.
    fn value(&mut self, step: u64, tag: &str, fields: &[u8]) -> Result<()> {
        let value = [&field_bytes(1, tag.as_bytes()), fields].concat(); // Summary.Value.tag
        self.event(step, &field_bytes(5, &field_bytes(1, &value))) // Event.summary, Summary.value
    }

    /// Adds the `values` of `step`, each under its tag.
    pub fn scalars(&mut self, step: u64, values: &[(impl AsRef<str>, f64)]) -> Result<()> {
        let mut summary = Vec::new();
        for (tag, value) in values {
            let mut scalar = field_bytes(1, tag.as_ref().as_bytes()); // Summary.Value.tag
            scalar.push(2 << 3 | 5); // Summary.Value.simple_value, 32 bits
            scalar.extend((*value as f32).to_le_bytes());
            summary.extend(field_bytes(1, &scalar)); // Summary.value
        }
        self.event(step, &field_bytes(5, &summary)) // Event.summary
    }

    /// Writes one event at once: a reader sees it, and a crash cannot lose it.
    fn event(&mut self, step: u64, what: &[u8]) -> Result<()> {
        self.time = self.time.max(now());
        let mut event = vec![1 << 3 | 1]; // Event.wall_time, 64 bits
        event.extend(self.time.to_le_bytes());
        event.extend(field_varint(2, step)); // Event.step
        event.extend(what);
        let length = (event.len() as u64).to_le_bytes();
        let mut record = length.to_vec();
        record.extend(masked_crc(&length).to_le_bytes());
        record.extend(&event);
        record.extend(masked_crc(&event).to_le_bytes());
        self.file.write_all(&record).map_err(|e| failed(&self.path, e))
    }
}

/// Seconds since 1970, by the clock.
fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

/// The earliest time, in seconds since 1970, of a file that comes after the event files in `folder`: a later second
/// than their names have, and no earlier than when they were last written.
fn newest(folder: &Path) -> Result<f64> {
    let mut newest = 0.0;
    for entry in std::fs::read_dir(folder).map_err(|e| Error::io(folder, e))? {
        let entry = entry.map_err(|e| Error::io(folder, e))?;
        let name = entry.file_name();
        let Some(rest) = name.to_str().and_then(|name| name.strip_prefix(PREFIX)) else { continue };
        let named = rest
            .split('.')
            .next()
            .and_then(|seconds| seconds.parse::<u64>().ok())
            .map_or(0.0, |seconds| seconds as f64 + 1.0);
        let written = entry.metadata().and_then(|about| about.modified()).ok();
        let written =
            written.and_then(|time| time.duration_since(UNIX_EPOCH).ok()).map_or(0.0, |time| time.as_secs_f64());
        newest = f64::max(newest, named.max(written));
    }
    Ok(newest)
}

/// A field of protocol buffers with a number.
fn field_varint(field: u8, value: u64) -> Vec<u8> {
    let mut out = vec![field << 3];
    varint(value, &mut out);
    out
}

/// A field of protocol buffers with bytes: a string or a message.
fn field_bytes(field: u8, bytes: &[u8]) -> Vec<u8> {
    let mut out = vec![field << 3 | 2];
    varint(bytes.len() as u64, &mut out);
    out.extend(bytes);
    out
}

/// Seven bits a byte, lowest first; the eighth says that more follow.
fn varint(mut value: u64, out: &mut Vec<u8>) {
    while value > 127 {
        out.push(value as u8 | 128);
        value >>= 7;
    }
    out.push(value as u8);
}

fn masked_crc(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}
