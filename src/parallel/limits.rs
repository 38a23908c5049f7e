//! Sets how long processes that are ranks wait for each other, and how long their messages are.

use std::time::Duration;

use crate::{Result, bail};

/// What processes that are ranks have to keep to; the defaults are right outside tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The most bytes in one message, a multiple of 8; longer ones go in parts. MPI counts in C ints, so it is below 2
    /// GiB.
    pub message: usize,
    /// A process that nothing is heard from for so long is lost.
    pub silence: Duration,
    /// How long processes that know each other only by an address may take to meet there.
    pub joining: Duration,
    /// How long MPI may take to join all processes of its launcher.
    pub starting: Duration,
    /// How long ranks may be in one exchange of GPUs, whose disagreements nobody sees.
    pub exchange: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        let [silence, joining, starting, exchange] = [25, 60, 300, 1800].map(Duration::from_secs);
        Self { message: 1 << 30, silence, joining, starting, exchange }
    }
}

/// The variable that sets how long ranks may take to join each other, in seconds.
pub(super) const JOIN_SECONDS: &str = "LONGREEL_JOIN_SECONDS";

impl Limits {
    /// The defaults, but for what the environment says: `LONGREEL_JOIN_SECONDS`.
    ///
    /// # Errors
    /// It is no number of seconds of at most a day.
    pub fn from_environment() -> Result<Self> {
        Self::from(|name| std::env::var(name).ok())
    }

    /// As [`from_environment`](Self::from_environment), of variables that `get` gives.
    ///
    /// # Errors
    /// As there.
    pub fn from(get: impl Fn(&str) -> Option<String>) -> Result<Self> {
        let Some(text) = get(JOIN_SECONDS).filter(|text| !text.trim().is_empty()) else { return Ok(Self::default()) };
        match text.trim().parse() {
            Ok(seconds @ 1..=86_400) => {
                let limit = Duration::from_secs(seconds);
                Ok(Self { joining: limit, starting: limit, ..Self::default() })
            }
            _ => bail!(
                Config,
                "{JOIN_SECONDS} is {text:?}: it is how long ranks may take to join each other, in seconds, 1 to 86400 (a day)"
            ),
        }
    }
}
