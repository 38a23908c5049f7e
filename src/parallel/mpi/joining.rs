//! Limits the time that MPI may take to start, since MPI waits for ever for a process that hangs before it has joined.
//!
//! Before MPI has started no rank can tell another anything. What can be seen is the processes of the same job on the
//! same machine, and whether they wait as well: those have a thread of a known name.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::{FAREWELL, end_within};
use crate::observe::stderr::Stderr;
use crate::parallel::limits::JOIN_SECONDS;
use crate::parallel::{LauncherEnv, thread_refused};
use crate::{Error, Result, terminal};

/// The thread of a process that waits for MPI to start: at most 15 bytes.
const NAME: &str = "mpi-joining";
/// What launchers call a job: the variables are equal in all its processes, and in no other's.
const JOBS: [&str; 4] = ["PMIX_NAMESPACE", "SLURM_JOB_ID", "SLURM_STEP_ID", "PMI_PORT"];
/// How long a process stays after its report, so that others whose time is up see that it reports; and how long it
/// takes to end.
const END: Duration = Duration::from_secs(2);

/// Ends the process if it is not dropped in time.
pub(super) struct Joining {
    joined: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Joining {
    /// Starts to time the process of this `env`, which is about to start MPI.
    pub fn watch(env: &LauncherEnv, limit: Duration) -> Result<Self> {
        let (joined, wait) = mpsc::channel();
        let env = env.clone();
        let watch = move || {
            if wait.recv_timeout(limit) == Err(RecvTimeoutError::Timeout) {
                give_up(&env, limit);
            }
        };
        let thread = thread::Builder::new().name(NAME.into()).spawn(watch);
        let thread = thread.map_err(|e| thread_refused("a thread to watch how MPI starts", &e))?;
        Ok(Self { joined: Some(joined), thread: Some(thread) })
    }
}

impl Drop for Joining {
    fn drop(&mut self) {
        drop(self.joined.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A process of the job on this machine.
struct Sibling {
    process: u32,
    /// For MPI to start.
    waits: bool,
}

/// Says which rank is missing, if no lower rank here does, and ends the process; the launcher then ends the others.
fn give_up(env: &LauncherEnv, limit: Duration) -> ! {
    let siblings_here = siblings(env);
    let first = siblings_here.iter().find(|(_, sibling)| sibling.waits).is_none_or(|(rank, _)| *rank >= env.rank);
    if !first {
        thread::sleep(FAREWELL); // that of the lower rank is the launcher's sign to end this one too
    }
    let _ = writeln!(Stderr, "error: {}", terminal::message(&missing(env, &siblings_here, limit).to_string()));
    thread::sleep(END);
    end_within(END);
    std::process::exit(1)
}

/// The error that names those who have not come.
fn missing(env: &LauncherEnv, siblings_here: &BTreeMap<usize, Sibling>, limit: Duration) -> Error {
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let limit = limit.as_secs_f32();
    let more = format!("ranks that need longer to start are waited for with {JOIN_SECONDS}");
    let list = |ranks: Vec<usize>| ranks.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let mut late = siblings_here.iter().filter(|(_, sibling)| !sibling.waits);
    if let Some((&rank, Sibling { process, .. })) = late.next() {
        let others: Vec<usize> = late.map(|(rank, _)| *rank).collect();
        let others = if others.is_empty() { String::new() } else { format!("; nor have ranks {}", list(others)) };
        let message = format!(
            "it has not joined the others within {limit} s (process {process} on {host}){others}: it hangs before it begins, or was \
             stopped; {more}"
        );
        return Error::Rank { rank, message };
    }
    let elsewhere = (0..env.size).filter(|rank| *rank != env.rank && !siblings_here.contains_key(rank)).collect();
    Error::Environment(format!(
        "the {} ranks that {} started have not joined each other within {limit} s; those on {host} have come, so see what became of ranks \
         {}; {more}",
        env.size,
        env.launcher,
        list(elsewhere)
    ))
}

/// The processes of the same job on this machine, by rank; of a rank that is a script, the script counts until its
/// longreel waits.
fn siblings(own: &LauncherEnv) -> BTreeMap<usize, Sibling> {
    let mut found = BTreeMap::new();
    let job = JOBS.map(|name| std::env::var(name).ok());
    if job.iter().all(Option::is_none) {
        return found;
    }
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    for process in processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok()) {
        let Ok(environment) = fs::read(format!("/proc/{process}/environ")) else { continue };
        let get = |name: &str| {
            let of = |variable: &[u8]| {
                String::from_utf8(variable.strip_prefix(name.as_bytes())?.strip_prefix(b"=")?.to_vec()).ok()
            };
            environment.split(|byte| *byte == 0).find_map(of)
        };
        let Some(env) = LauncherEnv::from(get) else { continue };
        if JOBS.map(get) != job || (env.size, env.launcher) != (own.size, own.launcher) {
            continue;
        }
        let waits = waits(process);
        let sibling = found.entry(env.rank).or_insert(Sibling { process, waits });
        if waits {
            *sibling = Sibling { process, waits };
        }
    }
    found
}

/// Whether a process waits for MPI to start.
fn waits(process: u32) -> bool {
    let threads = fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten().flatten();
    threads.filter_map(|thread| fs::read_to_string(thread.path().join("comm")).ok()).any(|name| name.trim_end() == NAME)
}
