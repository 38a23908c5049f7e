//! Cryptographic digests as hexadecimal digits.

/// Lower-case hexadecimal digits.
pub(crate) fn to_hex(bytes: impl AsRef<[u8]>) -> String {
    bytes.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The digest of all that `reader` gives, after what `state` has taken already.
///
/// # Errors
/// Those of reading.
#[cfg(any(feature = "hub", feature = "media"))]
pub(crate) fn digest_of(mut state: impl sha2::Digest, mut reader: impl std::io::Read) -> std::io::Result<String> {
    let mut buffer = vec![0; 1 << 20];
    loop {
        match reader.read(&mut buffer)? {
            0 => return Ok(to_hex(state.finalize())),
            n => state.update(&buffer[..n]),
        }
    }
}
