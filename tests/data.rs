//! Folders to frames: what is used and what is skipped, exact frames, patch rows, order and prefetch.
//!
//! Media are made at test time by the ffmpeg command line, with frames that carry their number in black and white bars.

mod bad;
mod buckets;
mod claims;
mod decode;
mod files;
mod frame_cache;
mod kinds;
mod large;
mod loader;
pub mod media;
mod odd;
mod overlap;
mod pictures;
mod rows;
mod scan;
mod timing;
