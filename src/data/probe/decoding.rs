//! Indexes a video by decoding all of it, where its packets do not tell.

use super::super::ffmpeg::{self, PacketId, Reader, Reason};
use super::super::sizes::{Size, Sizes};
use super::{Found, Looks};
use crate::terminal::counted;
use ffmpeg_next::frame;
use std::path::Path;

/// The index by decoding everything.
///
/// # Errors
/// The file is damaged, or holds no frames.
pub fn from_decoding(path: &Path, packets: &[PacketId]) -> Reason<Found> {
    let mut reader = Reader::open(path, None)?.follow(packets);
    let mut frame = frame::Video::empty();
    let (mut order, mut sizes, mut looks) = (Vec::new(), Sizes(Vec::new()), Looks::default());
    loop {
        let more = reader.next_frame(&mut frame)?;
        if more && ffmpeg::is_damaged(&frame) {
            reader.trouble.get_or_insert_with(|| "it is damaged".to_owned());
        }
        if let Some(trouble) = &reader.trouble {
            return Err(format!("{trouble}: {} can be decoded", counted(order.len(), "frame", "frames")));
        }
        if !more {
            break;
        }
        sizes.note(order.len(), Size::of(&mut frame, &mut reader));
        looks.note(&frame);
        order.push(frame.pts().map(|number| number as usize));
    }
    if order.is_empty() {
        return Err("it holds no frames".to_owned());
    }
    Ok(Found { order, sizes, looks })
}
