//! Turns a decoder's panic into the reason why its file is not used.
//!
//! Decoders of others work on bytes of others. One that panics must not end a run, or a scan of a million files,
//! without the name of the file. What it was working on is dropped, so nothing half-done is left; nothing is printed
//! but the reason.

use super::ffmpeg::Reason;
use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind, set_hook, take_hook};
use std::path::Path;
use std::sync::Once;

thread_local! {
    /// Whether this thread is in [`caught`].
    static CATCHING: Cell<bool> = const { Cell::new(false) };
    /// What the last panic of this thread said, and where it was.
    static SAID: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Calls `decode`; a panic in it is an error.
pub fn caught<T>(decode: impl FnOnce() -> Reason<T>) -> Reason<T> {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = take_hook();
        set_hook(Box::new(move |info| match CATCHING.get() {
            true => SAID.set(said(info)),
            false => before(info),
        }));
    });
    let outer = CATCHING.replace(true);
    let result = catch_unwind(AssertUnwindSafe(decode));
    CATCHING.set(outer);
    result.unwrap_or_else(|_| Err(format!("its decoder failed ({})", SAID.take())))
}

/// The panic's message and its place: a source file's name and line.
fn said(info: &PanicHookInfo) -> String {
    let payload = info.payload();
    let text = payload.downcast_ref::<&str>().copied().or(payload.downcast_ref::<String>().map(String::as_str));
    let text = text.unwrap_or("no message").replace('\n', " ");
    match info.location() {
        None => text,
        Some(at) => {
            let file = Path::new(at.file()).file_name().unwrap_or_default().to_string_lossy().into_owned();
            format!("{text}, {file}:{}", at.line())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_a_reason_with_its_message_and_place() {
        let reason = caught(|| -> Reason<()> { panic!("index 3\nof 2") }).unwrap_err();
        assert!(reason.starts_with("its decoder failed (index 3 of 2, caught.rs:"), "{reason}");
        assert_eq!(caught(|| Ok(5)), Ok(5));
        assert_eq!(
            caught(|| caught(|| -> Reason<()> { panic!("inner") }).map_err(|_| "outer".to_owned())),
            Err("outer".to_owned())
        );
    }
}
