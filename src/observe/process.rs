//! Says how much memory this process has, and how many pages it has faulted in.

/// Resident memory of this process in bytes; 0 where the system does not tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    pub now: u64,
    pub peak: u64,
}

/// This process's memory, from `/proc/self/status` (VmRSS, VmHWM).
pub fn memory() -> Memory {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    parse_memory(&status)
}

/// Page faults of this process so far that read nothing from disk, from `/proc/self/stat`; 0 where the system does not
/// tell.
pub fn page_faults() -> u64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The tenth field; the second is the program's name in brackets, which may hold anything.
    let after = stat.rsplit_once(')').map_or("", |(_, after)| after);
    after.split_whitespace().nth(7).and_then(|field| field.parse().ok()).unwrap_or(0)
}

fn parse_memory(status: &str) -> Memory {
    let bytes = |key: &str| {
        let line = status.lines().find_map(|l| l.strip_prefix(key))?;
        line.split_whitespace().next()?.parse::<u64>().ok().map(|kib| kib * 1024)
    };
    Memory { now: bytes("VmRSS:").unwrap_or(0), peak: bytes("VmHWM:").unwrap_or(0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_in_bytes() {
        let status = "Name:\tx\nVmPeak:\t  9999 kB\nVmHWM:\t    2048 kB\nVmRSS:\t    1024 kB\n";
        assert_eq!(parse_memory(status), Memory { now: 1 << 20, peak: 2 << 20 });
        assert_eq!(parse_memory("VmRSS: nonsense"), Memory::default());
        let block = std::hint::black_box(vec![1u8; 64 << 20]);
        let memory = memory();
        assert!(memory.peak >= 64 << 20 && memory.now > 1 << 20, "{memory:?}");
        drop(block);
    }

    #[test]
    fn touched_pages_are_counted() {
        // More than an allocator keeps for others: 1000 pages that another test had freed made no fault.
        let (before, pages) = (page_faults(), 20_000);
        let block = std::hint::black_box(vec![1u8; pages * 4096]);
        assert!(page_faults() > before, "{before}, then {}", page_faults());
        drop(block);
    }
}
