//! Reads from the environment which launcher started this process, if any, its rank and the number of processes.

use super::TorchrunEnv;
use crate::Error;

/// This process among those that a launcher started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LauncherEnv {
    /// This process's rank.
    pub rank: usize,
    /// Processes, at least two; none if torchrun's `WORLD_SIZE` is no number, which is refused in
    /// [`Launch::from_environment`](super::Launch::from_environment).
    pub size: usize,
    /// What started them, for people.
    pub launcher: &'static str,
}

/// What launchers tell their processes: how many there are, and which this one is. The first that is there counts, for
/// mpirun may itself be started by srun.
const LAUNCHERS: [(&str, &str, &str); 3] = [
    ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "mpirun"), // Open MPI
    ("PMI_SIZE", "PMI_RANK", "mpiexec"),                        // MPICH and its kin; Slurm's PMI-2
    ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "srun"),           // of the step: a batch script itself is no step
];

pub(super) const TORCHRUN: &str = "torchrun";

impl LauncherEnv {
    /// What the environment says; none where this process is alone.
    pub fn here() -> Option<Self> {
        Self::from(|name| std::env::var(name).ok())
    }

    /// As [`here`](Self::here), of variables that `get` gives.
    pub fn from(get: impl Fn(&str) -> Option<String>) -> Option<Self> {
        let number = |name: &str| get(name)?.trim().parse::<usize>().ok();
        let told = LAUNCHERS.iter().find_map(|&(size, rank, launcher)| Some((number(size)?, number(rank)?, launcher)));
        let told = told.map(|(size, rank, launcher)| Self { rank, size, launcher }).filter(|told| told.size > 1);
        // Nonsense counts as well: taken for a process that is alone, each would train.
        let torchrun = TorchrunEnv::NEEDED.iter().all(|name| get(name).is_some()).then(|| {
            let (rank, size) = (number("RANK").unwrap_or(0), number("WORLD_SIZE").unwrap_or(0));
            Self { rank, size, launcher: TORCHRUN }
        });
        match (told, torchrun.filter(|torchrun| torchrun.size != 1)) {
            // A script that hands mpirun's or srun's numbers on in torchrun's variables: the build says what they are
            // for.
            (Some(told), Some(torchrun)) if (told.rank, told.size) == (torchrun.rank, torchrun.size) => {
                Some(if cfg!(feature = "nccl") { torchrun } else { told })
            }
            // srun or mpirun has started a torchrun on each machine.
            (_, Some(torchrun)) => Some(torchrun),
            (told, None) => told,
        }
    }
}

/// Whether this process reports what concerns all: it is the only one, or the first.
pub fn is_first() -> bool {
    LauncherEnv::here().is_none_or(|placement| placement.rank == 0)
}

/// Whether this process reports an error that it met before it had joined others: an error of all processes is reported
/// by the first, an error of one process by itself.
pub fn is_to_tell(error: &Error) -> bool {
    is_first()
        || matches!(error, Error::Rank { rank, .. } if LauncherEnv::here().is_some_and(|here| here.rank == *rank))
}
