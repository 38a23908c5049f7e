//! Without the feature `media` no file is read: of this room there is only what a config says of clips.

mod buckets;
mod options;

pub use buckets::{Bucket, ClipGrid, Resolutions};
pub use options::{ClipOptions, Crop, Label, SourceOptions};
