//! Threads that the system may refuse: an error that names the limits, in place of a panic.

use std::error::Error as _;
use std::fmt::Display;
use std::fs;
use std::sync::OnceLock;

use rustix::process::{Resource, getrlimit};

use crate::files::gib;
use crate::{Error, Result, bail};

/// The variable by which rayon is told its threads.
const THREADS: &str = "RAYON_NUM_THREADS";
/// More threads than any machine has processors.
const MOST: usize = 4096;

/// Why `what`, a thread or several, was not to be had, with the limits that may be the cause.
pub fn thread_refused(what: &str, why: &dyn Display) -> Error {
    let limits = limits();
    let limits = if limits.is_empty() {
        "no limit of this process's is set: is memory short?".into()
    } else {
        limits.join("; ")
    };
    Error::Environment(format!(
        "cannot start {what}: {why}; {limits}; raise what is too low, or use fewer ranks or threads"
    ))
}

/// The limits on threads that are set, for people.
fn limits() -> Vec<String> {
    let mut set = vec![];
    if let Some(most) = getrlimit(Resource::Nproc).current {
        set.push(format!("the user may have {most} processes and threads (RLIMIT_NPROC, ulimit -u)"));
    }
    if let Some(most) = getrlimit(Resource::As).current {
        set.push(format!("the process may have {} of addresses (RLIMIT_AS, ulimit -v)", gib(most)));
    }
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let own = own.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or_default().trim().to_owned();
    // Within a container the group is the root.
    let read = |path: String| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    let most = read(format!("/sys/fs/cgroup{own}/pids.max")).or_else(|| read("/sys/fs/cgroup/pids.max".into()));
    if let Some(most) = most {
        set.push(format!("the container may have {most} processes and threads (pids.max of its cgroup)"));
    }
    set
}

/// Starts rayon's pool for work outside of ranks. Rayon itself would start it at first use, and panic where it cannot.
///
/// # Errors
/// `RAYON_NUM_THREADS` is nonsense, or the system refuses the threads.
pub fn start_pool() -> Result<()> {
    static STARTED: OnceLock<Option<String>> = OnceLock::new();
    let threads = wanted(std::env::var_os(THREADS).map(|text| text.to_string_lossy().into_owned()).as_deref())?;
    let refused = STARTED.get_or_init(|| {
        let started = rayon::ThreadPoolBuilder::new().num_threads(threads.unwrap_or(0)).build_global();
        // That there is one already is fine, and has no cause.
        started.err().filter(|e| e.source().is_some()).map(|e| e.to_string())
    });
    match refused {
        None => Ok(()),
        Some(why) => Err(thread_refused(
            &threads.map_or("as many threads as there are processors".into(), |n| format!("{n} threads ({THREADS})")),
            why,
        )),
    }
}

/// How many threads the variable asks for; none, which is one a processor, if it is not set or 0, as rayon has it.
fn wanted(text: Option<&str>) -> Result<Option<usize>> {
    let Some(text) = text.map(str::trim).filter(|text| !text.is_empty()) else { return Ok(None) };
    match text.parse() {
        Ok(0) => Ok(None),
        Ok(n @ 1..=MOST) => Ok(Some(n)),
        _ => bail!(
            Config,
            "{THREADS} is {text:?}: it is a number of threads, 1 to {MOST}; unset or 0, it is one a processor"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_absurd_number_of_threads_is_named_and_none_is_rayons_own() {
        for text in [None, Some(""), Some("0"), Some(" ")] {
            assert_eq!(wanted(text).unwrap(), None);
        }
        assert_eq!((wanted(Some("1")).unwrap(), wanted(Some(" 4096 ")).unwrap()), (Some(1), Some(4096)));
        for text in ["many", "-1", "4097", "1000000000", "99999999999999999999", "1.5"] {
            let said = wanted(Some(text)).unwrap_err().to_string();
            assert!(said.starts_with(&format!("RAYON_NUM_THREADS is \"{text}\": it is a number of threads")), "{said}");
        }
    }
}
