//! Reads folders of videos and images into clips, and decodes the frames that a rank's tokens lie in.
//!
//! [`Dataset`] walks a folder, finds out what each file holds and cuts it into [`Clip`]s; [`Dataset::frames`] decodes a
//! [`FrameRegion`] of one as u8 [`Frames`]; [`Frames::patch_rows`] makes the network's rows from them, tile by tile;
//! [`Loader`] does the decoding ahead of the step. [`ClipSets`] are clips of several sizes, a dataset for each
//! [`Bucket`], and [`BucketOrder`] says which one a step takes. Whatever is not used is a [`Skipped`] with its reason.
//!
//! Only the files marked as such talk to FFmpeg, and only `ffmpeg` does so unsafely. `docs/data.md` tells the rules.

#![warn(missing_docs)]

mod apart;
mod bucket_order;
mod buckets;
mod captions;
mod caught;
mod classes;
mod clips;
pub mod contact_sheet;
mod dataset;
mod deal;
mod decode;
mod decoding;
mod deinterlace;
mod extent;
mod ffmpeg;
mod file_bucket;
mod fit_image;
mod frame_cache;
mod frame_loader;
mod frames;
mod hdr;
mod header;
mod image_reader;
mod loader;
mod opacity;
mod open;
mod options;
mod others;
mod overlap;
mod probe;
mod rates;
mod recipe;
mod region;
mod report;
mod scale;
mod sets;
mod shrink;
mod shuffle;
mod sizes;
mod skipped;
mod source;
mod timing;
mod truncation;
mod unpatch;
mod verify;
mod walk;
mod windows;
pub mod write;

pub use apart::{Apart, refuse_own_output};
pub use bucket_order::{BucketOrder, Turn};
pub use buckets::{Bucket, ClipGrid, Resolutions};
pub use captions::{CaptionLine, caption_lines};
pub use clips::Clips;
pub use dataset::{Clip, Dataset};
pub use decoding::Decoding;
pub use extent::Extent;
pub use frame_cache::FrameCache;
pub use frames::{ClipRows, FrameRegion, Frames, RowOrder, token_grid, u8_to_unit};
pub use image_reader::check_image;
pub use loader::{Loader, ReadClip, Sample};
pub use options::{ClipOptions, Crop, Label, SourceOptions};
pub use overlap::Overlaps;
pub use recipe::Recipe;
pub use report::{draw_sheet, name_below, report, report_buckets};
pub use sets::{ClipSets, Source};
pub use shuffle::{Augment, Request};
pub use skipped::Skipped;
pub use source::SourceFile;
pub use unpatch::unit_to_u8;
pub use windows::{Windows, resample};
