//! Folders to clips to the frames that a rank's tokens lie in.
//!
//! [`Dataset`] walks a folder, finds out what each file holds and cuts it into [`Clip`]s; [`Dataset::frames`] decodes a
//! [`FrameRegion`] of one as u8 [`Frames`]; [`Frames::patch_rows`] makes the network's rows from them, tile by tile; [`Loader`]
//! does the decoding ahead of the step. Whatever is not used is a [`Skipped`] with its reason.
//!
//! Only the files marked as such talk to FFmpeg, and only `av` does so unsafely. `docs/data.md` tells the rules.

mod apart;
mod av;
mod captions;
mod caught;
mod cut;
mod dataset;
mod decode;
mod decoding;
mod deinterlace;
mod extent;
mod frames;
mod hdr;
mod header;
mod loader;
mod order;
mod overlap;
mod picture;
mod probe;
mod rates;
mod report;
mod scale;
pub mod sheet;
mod shrink;
mod sizes;
mod source;
mod still;
mod timing;
mod walk;
mod whole;
pub mod write;

pub use apart::{Apart, refuse_own_output};
pub use captions::{CaptionLine, caption_lines};
pub use cut::{Cut, resample};
pub use dataset::{Clip, Dataset};
pub use decoding::Decoding;
pub use frames::{FrameRegion, Frames, RowOrder, level, token_grid};
pub use loader::{Loader, Sample};
pub use order::{Augment, Request};
pub use overlap::Overlaps;
pub use picture::check_image;
pub use report::{draw_sheet, name_below, report};
pub use source::SourceFile;
pub use walk::Skipped;
