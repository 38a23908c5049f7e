//! Addresses: of the hub's answers, and where its redirects lead.

use super::shown;
use crate::{Error, Result, bail};
use ureq::http::Uri;

/// Whom a request goes to: scheme, host and port. A token is for one of them only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    secure: bool,
    host: String,
    port: u16,
}

impl Origin {
    /// The origin of an `http` or `https` address; none of any other.
    pub fn of(address: &Uri) -> Option<Self> {
        let secure = match address.scheme_str()? {
            "https" => true,
            "http" => false,
            _ => return None,
        };
        // A user before the host would be sent along as a name and password.
        let authority = address.authority().filter(|a| !a.as_str().contains('@') && !a.host().is_empty())?;
        let port = match authority.as_str().strip_prefix(authority.host())? {
            "" | ":" if secure => 443,
            "" | ":" => 80,
            _ => authority.port_u16()?,
        };
        Some(Self { secure, host: authority.host().to_ascii_lowercase(), port })
    }
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { secure, host, port } = self;
        write!(f, "{}://{}", if *secure { "https" } else { "http" }, shown(host))?;
        if *port == if *secure { 443 } else { 80 } { Ok(()) } else { write!(f, ":{port}") }
    }
}

/// Where an answer from `from` leads with a `Location` header.
///
/// # Errors
/// It is no address, not one of http or https, or one of http in an answer that came over https.
pub fn redirected(from: &Uri, location: &str) -> Result<Uri> {
    let target = location.split('#').next().unwrap_or("");
    let (scheme, authority) = (from.scheme_str().unwrap_or(""), from.authority().map_or("", |a| a.as_str()));
    let full = if has_scheme(target) {
        target.to_owned()
    } else if target.starts_with("//") {
        format!("{scheme}:{target}")
    } else if target.starts_with('/') {
        format!("{scheme}://{authority}{target}")
    } else if target.starts_with('?') {
        format!("{scheme}://{authority}{}{target}", from.path())
    } else {
        let folder = from.path().rsplit_once('/').map_or("", |(folder, _)| folder);
        format!("{scheme}://{authority}{folder}/{target}")
    };
    let address = |text: &str| text.parse::<Uri>().ok().and_then(|uri| Some((Origin::of(&uri)?, uri)));
    let Some((to, uri)) = address(&full).filter(|_| !target.is_empty()) else {
        bail!(Data, "it redirects to `{}`, which is no address of http or https", shown(location));
    };
    if Origin::of(from).is_some_and(|from| from.secure) && !to.secure {
        bail!(Data, "it redirects from https to {to}, where anyone could change what comes");
    }
    Ok(uri)
}

/// Whether a reference begins with a scheme, such as `https:`.
fn has_scheme(reference: &str) -> bool {
    let Some((scheme, _)) = reference.split_once(':') else { return false };
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'-' | b'.');
    scheme.starts_with(|c: char| c.is_ascii_alphabetic()) && scheme.bytes().all(allowed)
}

/// The first byte that a `Content-Range` header (`bytes 5-9/10`) says an answer begins with.
pub fn range_start(header: &str) -> Option<u64> {
    let (start, _) = header.trim().strip_prefix("bytes ")?.split_once('-')?;
    start.bytes().all(|b| b.is_ascii_digit()).then(|| start.parse().ok())?
}

/// An address in text, checked.
pub(super) fn parse(text: &str) -> Result<Uri> {
    text.parse().map_err(|e| Error::Data(format!("`{}` is no address: {e}", shown(text))))
}

/// Percent-encodes what may not stand in a part of an address's path; slashes stay.
pub(super) fn escape(path: &str) -> String {
    let mut out = String::new();
    for byte in path.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => out.push(byte as char),
            other => out.push_str(&format!("%{other:02X}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_lead_where_the_standard_says() {
        let lead = |from: &str, to: &str| redirected(&from.parse().unwrap(), to).map(|uri| uri.to_string());
        let from = "https://hub.example:8443/a/b?c=d";
        for (to, expected) in [
            ("https://cdn.example/x?y=z#part", "https://cdn.example/x?y=z"),
            ("HTTPS://cdn.example/x", "https://cdn.example/x"),
            ("//cdn.example/x", "https://cdn.example/x"),
            ("/x", "https://hub.example:8443/x"),
            ("x/y", "https://hub.example:8443/a/x/y"),
            ("x?to=http://y", "https://hub.example:8443/a/x?to=http://y"),
            ("?e", "https://hub.example:8443/a/b?e"),
        ] {
            assert_eq!(lead(from, to).unwrap(), expected, "{to}");
        }
        for bad in
            ["", "#x", "ftp://x/y", "file:///etc/passwd", "javascript:x", "https://", "https://a b/", "//", "\u{1b}["]
        {
            let message = lead(from, bad).unwrap_err().to_string();
            assert!(message.contains("no address of http or https") && !message.contains('\u{1b}'), "{bad}: {message}");
        }
        assert!(lead(from, "https://user:password@cdn.example/x").is_err());
        assert!(lead(from, "http://hub.example:8443/a").unwrap_err().to_string().contains("from https to http"));
        assert!(lead("http://mirror/a", "https://hub/b").is_ok());
        assert_eq!(lead("http://mirror", "x").unwrap(), "http://mirror/x");
    }

    #[test]
    fn origins_are_one_if_scheme_host_and_port_are() {
        let origin = |text: &str| Origin::of(&text.parse().unwrap()).unwrap();
        assert_eq!(origin("https://Hub.example/a"), origin("https://hub.example:443/b?c"));
        for other in ["http://hub.example/a", "https://hub.example:444/a", "https://hub.example.evil/a"] {
            assert_ne!(origin("https://hub.example/a"), origin(other));
        }
        assert_eq!(origin("http://[::1]:80/a").to_string(), "http://[::1]");
    }

    #[test]
    fn ranges_begin_where_they_say() {
        assert_eq!(range_start("bytes 5-9/10"), Some(5));
        assert_eq!(range_start("bytes 0-9/*"), Some(0));
        for bad in
            ["", "bytes", "bytes */10", "bytes -5-9/10", "bytes 99999999999999999999-1/2", "5-9/10", "bytes +5-9/10"]
        {
            assert_eq!(range_start(bad), None, "{bad}");
        }
    }
}
