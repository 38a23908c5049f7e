//! Reads small text files that people and other programs wrote: captions, lists, settings.
//!
//! A text is decoded by its byte-order mark, UTF-8 without one; editors on Windows write such marks, and none shows
//! them. A file longer than such a text can be is refused before it is read, and so is whatever is no regular file: a
//! FIFO would wait for ever.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// Reads the text file `path` of at most `limit` bytes; see [`decode_text`].
///
/// # Errors
/// It cannot be read, is no regular file, is longer, or is not text. The error does not name the file.
pub fn read_text(path: &Path, limit: u64) -> io::Result<String> {
    let invalid = |why: String| io::Error::new(io::ErrorKind::InvalidData, why);
    let about = std::fs::metadata(path)?;
    if !about.is_file() {
        return Err(invalid("it is not a regular file".to_owned()));
    }
    let too_long = |bytes: u64| invalid(format!("it has {bytes} bytes or more; at most {limit} are read"));
    if about.len() > limit {
        return Err(too_long(about.len()));
    }
    let mut bytes = Vec::with_capacity(about.len() as usize);
    File::open(path)?.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(too_long(bytes.len() as u64)); // it grew meanwhile
    }
    decode_text(bytes).map_err(invalid)
}

/// The text that `bytes` are: UTF-8, or UTF-16 where a byte-order mark says so. The mark is not part of the text.
///
/// # Errors
/// The reason why they are no text.
pub fn decode_text(mut bytes: Vec<u8>) -> std::result::Result<String, String> {
    let utf16 = |word: fn([u8; 2]) -> u16| {
        let (pairs, rest) = bytes[2..].as_chunks::<2>();
        let words = pairs.iter().map(|&pair| word(pair));
        let text: Option<String> = char::decode_utf16(words).map(|c| c.ok()).collect();
        text.filter(|_| rest.is_empty()).ok_or_else(|| "it is not UTF-16, as its byte-order mark says".to_owned())
    };
    match bytes[..] {
        [0xff, 0xfe, 0, 0, ..] | [0, 0, 0xfe, 0xff, ..] => Err("it is UTF-32: save it as UTF-8".to_owned()),
        [0xff, 0xfe, ..] => utf16(u16::from_le_bytes),
        [0xfe, 0xff, ..] => utf16(u16::from_be_bytes),
        _ => {
            if bytes.starts_with(b"\xef\xbb\xbf") {
                bytes.drain(..3);
            }
            String::from_utf8(bytes).map_err(|e| {
                let (at, bytes) = (e.utf8_error().valid_up_to(), e.as_bytes());
                if bytes.contains(&0) {
                    return "it is no text".to_owned();
                }
                let line = 1 + bytes[..at].iter().filter(|&&b| b == b'\n').count();
                format!("it is not UTF-8 from byte {at} (line {line}) on: save it as UTF-8")
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_decoded_by_its_byte_order_mark() {
        let utf16 = |mark: [u8; 2], bytes: fn(u16) -> [u8; 2]| -> Vec<u8> {
            mark.into_iter().chain("über 🦋".encode_utf16().flat_map(bytes)).collect()
        };
        let good = [
            "über 🦋".as_bytes().to_vec(),
            "\u{feff}über 🦋".as_bytes().to_vec(),
            utf16([0xff, 0xfe], u16::to_le_bytes),
            utf16([0xfe, 0xff], u16::to_be_bytes),
        ];
        for bytes in good {
            assert_eq!(decode_text(bytes.clone()).as_deref(), Ok("über 🦋"), "{bytes:x?}");
        }
        let bad: [(&[u8], &str); 6] = [
            (b"ab\xffc\0d", "it is no text"),
            (b"ab\xffcd", "UTF-8 from byte 2 (line 1) on"),
            (b"\xff\xfea", "not UTF-16"),
            (b"\xff\xfe\x00\xd8", "not UTF-16"),
            (b"\xff\xfe\x00\x00a\x00\x00\x00", "UTF-32"),
            (b"\x00\x00\xfe\xff\x00\x00\x00a", "UTF-32"),
        ];
        for (bytes, why) in bad {
            assert!(decode_text(bytes.to_vec()).unwrap_err().contains(why), "{bytes:x?}");
        }
        assert_eq!(decode_text(vec![]).as_deref(), Ok(""));
    }

    #[test]
    fn a_long_file_or_a_device_is_refused_unread() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.txt");
        File::create(&path).unwrap().set_len(1 << 40).unwrap(); // takes no room on disk
        let error = read_text(&path, 1000).unwrap_err().to_string();
        assert!(error.contains("1099511627776 bytes") && error.contains("at most 1000"), "{error}");
        std::fs::write(&path, "x".repeat(1000)).unwrap();
        assert_eq!(read_text(&path, 1000).unwrap().len(), 1000);
        let error = read_text(Path::new("/dev/zero"), 1000).unwrap_err().to_string();
        assert!(error.contains("not a regular file"), "{error}");
    }
}
