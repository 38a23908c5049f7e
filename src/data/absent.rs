//! Without the feature `media` no file is read: of this room there is only what a config says of clips.

mod options;

pub use options::{ClipOptions, Crop, Label};
