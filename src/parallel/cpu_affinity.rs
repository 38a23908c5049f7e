//! Works out how many threads a rank has: its share of the processors that it may run on.

use serde::{Deserialize, Serialize};

use super::threads_per_rank;

/// The host and processors that a process runs on, as it tells the others.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct CpuAffinity {
    pub host: String,
    pid: u32,
    /// Numbers of the processors that it is bound to.
    bound: Vec<u16>,
    /// As many as it may keep busy: those, or fewer where a container's quota says so.
    available: usize,
}

impl CpuAffinity {
    /// This process's.
    pub fn here() -> Self {
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let bound = rustix::thread::sched_getaffinity(None).map_or(vec![], |set| {
            let possible = 0..rustix::thread::CpuSet::MAX_CPU as u16;
            possible.filter(|&i| set.is_set(usize::from(i))).collect()
        });
        Self { host, pid: std::process::id(), bound, available: threads_per_rank(1) }
    }

    /// The process, for people.
    pub fn location(&self) -> String {
        format!("process {} on {}", self.pid, self.host)
    }

    /// How many threads this process, one of `processes`, has: a processor that several processes of a host are bound
    /// to counts for each in part, so that it does not matter whether the launcher has bound them, or how. At least
    /// one.
    pub fn share(&self, processes: &[Self]) -> usize {
        let on_host = || processes.iter().filter(|other| other.host == self.host);
        let users = |i: &u16| on_host().filter(|other| other.bound.contains(i)).count().max(1);
        let share: f64 = self.bound.iter().map(|i| 1.0 / users(i) as f64).sum();
        let fraction =
            if self.bound.is_empty() { 1.0 / on_host().count().max(1) as f64 } else { share / self.bound.len() as f64 };
        // A hair more, for sums of thirds.
        ((self.available as f64 * fraction + 1e-6) as usize).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(host: &str, bound: std::ops::Range<u16>, available: usize) -> CpuAffinity {
        CpuAffinity { host: host.into(), pid: 1, bound: bound.collect(), available }
    }

    fn shares(processes: &[CpuAffinity]) -> Vec<usize> {
        processes.iter().map(|p| p.share(processes)).collect()
    }

    #[test]
    fn threads_per_rank_follow_cpu_affinity() {
        let free = process("a", 0..8, 8);
        assert_eq!(shares(&vec![free.clone(); 2]), [4, 4]);
        assert_eq!(shares(&vec![free.clone(); 3]), [2, 2, 2]);
        assert_eq!(shares(&vec![process("a", 0..9, 9); 3]), [3, 3, 3]);
        assert_eq!(shares(&vec![free.clone(); 20]), [1; 20]);
        // Each bound to its own: all of those, whatever the others have.
        assert_eq!(shares(&[process("a", 0..2, 2), process("a", 2..8, 6)]), [2, 6]);
        // Two to a socket.
        assert_eq!(
            shares(&[process("a", 0..4, 4), process("a", 0..4, 4), process("a", 4..8, 4), process("a", 4..8, 4)]),
            [2; 4]
        );
        // Another host's processors have the same numbers.
        assert_eq!(shares(&[free.clone(), process("b", 0..8, 8), process("b", 0..8, 8)]), [8, 4, 4]);
        // A container of eight of 64.
        assert_eq!(shares(&vec![process("pod", 0..64, 8); 2]), [4, 4]);
        assert_eq!(shares(&[process("pod", 0..64, 8)]), [8]);
        // Where the system does not tell what a process is bound to.
        assert_eq!(shares(&vec![process("a", 0..0, 8); 2]), [4, 4]);
    }

    #[test]
    fn affinity_of_this_process_is_read_from_the_system() {
        let affinity = CpuAffinity::here();
        assert!(!affinity.host.is_empty() && !affinity.bound.is_empty());
        assert_eq!(affinity.share(std::slice::from_ref(&affinity)), threads_per_rank(1));
    }
}
