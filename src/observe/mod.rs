//! What a run leaves to be looked at, and what shows it: metrics as JSON lines, TensorBoard's copy of them, warnings; a
//! page in the browser, and the same as one file.
//!
//! This room lies below [`train`](crate::train), which writes these files and knows nothing of the page. The page reads
//! files alone:
//!
//! - `runs` finds runs, `folder` opens files within one and nothing outside it;
//! - `follow` reads metrics as they grow, `series` keeps them in bounded memory, `details` is all else that a run has;
//! - `status` and `lock` say of one run how far it is and whether a process is at work in it;
//! - `meter` says of a rank where it is in a step and where the time went, in the words of `section`; `process` says
//!   what memory it has, `stderr` shares the terminal between log and progress;
//! - `http`, `server` and `page` answer a browser on this machine; `report` writes all of it into one file;
//! - `page/` has the page itself.

#[cfg(feature = "cli")]
mod details;
#[cfg(feature = "cli")]
mod folder;
#[cfg(feature = "cli")]
mod follow;
mod history;
#[cfg(feature = "cli")]
mod http;
pub mod lock;
pub mod meter;
pub mod metrics;
#[cfg(feature = "cli")]
mod page;
pub mod process;
#[cfg(feature = "cli")]
mod report;
#[cfg(feature = "cli")]
mod runs;
mod section;
#[cfg(feature = "cli")]
mod series;
#[cfg(feature = "cli")]
mod server;
#[cfg(feature = "cli")]
pub mod status;
pub mod stderr;
pub mod tensorboard;
pub mod warnings;

#[cfg(feature = "cli")]
pub use report::{MOST_MEDIA, Written, write_report};
#[cfg(feature = "cli")]
pub use server::Server;
