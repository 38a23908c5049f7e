//! Reads the boxes of an AVIF still, which FFmpeg decodes, to refuse what FFmpeg would leave out in silence.
//!
//! FFmpeg reads an AVIF's first picture alone. Turns, crops, tiles and transparency are properties and items beside it,
//! and whether they are applied depends on FFmpeg's version. ISO/IEC 14496-12 and 23008-12.

use crate::data::ffmpeg::Reason;

/// Bytes of boxes that are looked at: they stand before the picture.
pub const HEAD: u64 = 1 << 16;

/// Boxes within boxes within boxes, and no further.
const DEPTH: usize = 4;

/// Whether `head`, a file's first bytes, is that of an AVIF still; a sequence (`avis`) is a video.
pub fn is_still(head: &[u8]) -> bool {
    head.get(4..12) == Some(b"ftypavif")
}

/// Width and height that the AVIF beginning with `head` claims, or why it cannot be used.
pub fn check(head: &[u8]) -> Reason<[u64; 2]> {
    let mut found = Found::default();
    boxes(head, 0, &mut found).ok_or("it is cut short or damaged")?;
    let without =
        |what: &str| Err(format!("it is an AVIF image that is {what}, which is not read: convert it to PNG or JPEG"));
    match found {
        Found { tiled: true, .. } => without("made of tiles"),
        Found { alpha: true, .. } => without("transparent"),
        Found { turned: true, .. } => without("turned or cropped"),
        Found { size: Some(size), .. } => Ok(size),
        _ => without("laid out with its header behind its pixels"),
    }
}

#[derive(Default)]
struct Found {
    /// The largest: thumbnails have theirs.
    size: Option<[u64; 2]>,
    tiled: bool,
    alpha: bool,
    turned: bool,
}

/// Walks boxes that fill `bytes`, up to those of the pixels; none if one does not fit.
fn boxes(mut bytes: &[u8], depth: usize, found: &mut Found) -> Option<()> {
    while depth < DEPTH && !bytes.is_empty() {
        let (&[a, b, c, d, kind @ ..], _) = bytes.split_first_chunk::<8>()?;
        let size = u32::from_be_bytes([a, b, c, d]) as usize;
        if kind == *b"mdat" || size < 8 {
            return (depth == 0).then_some(()); // the pixels, or a last box without a length
        }
        let body = bytes.get(8..size)?;
        bytes = &bytes[size..];
        match &kind {
            b"meta" => boxes(body.get(4..)?, depth + 1, found)?,
            b"iinf" => boxes(body.get(if body.first() == Some(&0) { 6 } else { 8 }..)?, depth + 1, found)?,
            b"iprp" | b"ipco" => boxes(body, depth + 1, found)?,
            // Version 2: 4 bytes of version and flags, 2 of number, 2 of protection, then the item's type.
            b"infe" => found.tiled |= matches!(body.get(8..12), Some(b"grid" | b"iovl" | b"iden" | b"tmap")),
            b"auxC" => found.alpha |= body.windows(5).any(|word| word.eq_ignore_ascii_case(b"alpha")),
            b"irot" => found.turned |= body.first().is_some_and(|angle| angle & 3 != 0),
            b"imir" | b"clap" => found.turned = true,
            b"ispe" => {
                let [.., w0, w1, w2, w3, h0, h1, h2, h3] = *body.first_chunk::<12>()?;
                let size = [[w0, w1, w2, w3], [h0, h1, h2, h3]].map(|side| u64::from(u32::from_be_bytes(side)));
                let largest = found.size.unwrap_or_default();
                found.size = Some([size[0].max(largest[0]), size[1].max(largest[1])]);
            }
            _ => {}
        }
    }
    Some(())
}
