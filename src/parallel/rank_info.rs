//! Checks that the ranks of a job have GPUs that fit together, from what each rank tells the others about its machine.

use serde::{Deserialize, Serialize};

use crate::{Result, bail};

/// What a process tells of itself.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct RankInfo {
    pub host: String,
    /// Its number on its machine.
    pub local: usize,
    /// What there is, or why nothing is.
    pub gpus: std::result::Result<Gpus, String>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Gpus {
    /// That this process may use.
    pub count: usize,
    /// NCCL's version, as it counts.
    pub nccl: i32,
}

/// Refuses ranks that have no GPU of their own each, or whose machines differ. `ranks` is in rank order.
pub(super) fn judge(ranks: &[RankInfo]) -> Result<()> {
    let mut first: Option<(usize, &Gpus)> = None;
    for (rank, info) in ranks.iter().enumerate() {
        let host = &info.host;
        let gpus = match &info.gpus {
            Ok(gpus) => gpus,
            Err(why) => bail!(Environment, "rank {rank} on {host} cannot run on a GPU: {why}"),
        };
        if info.local >= gpus.count {
            bail!(
                Environment,
                "rank {rank} on {host} has LOCAL_RANK {}, but may use {} GPUs there: \
                 start no more processes on a machine than it has GPUs, \
                 and see CUDA_VISIBLE_DEVICES",
                info.local,
                gpus.count
            );
        }
        if let Some(other) = ranks[..rank].iter().position(|other| other.host == *host && other.local == info.local) {
            bail!(
                Environment,
                "ranks {other} and {rank} both have LOCAL_RANK {} on {host}: each needs a GPU of its own",
                info.local
            );
        }
        let Some((other, theirs)) = first else {
            first = Some((rank, gpus));
            continue;
        };
        let other_host = &ranks[other].host;
        if gpus.count != theirs.count {
            bail!(
                Environment,
                "rank {other} on {other_host} may use {} GPUs, and rank {rank} on {host} {}: use machines alike, or give each as many by \
                 CUDA_VISIBLE_DEVICES",
                theirs.count,
                gpus.count
            );
        }
        if gpus.nccl != theirs.nccl {
            let [one, two] = [theirs.nccl, gpus.nccl].map(version);
            bail!(
                Environment,
                "rank {other} on {other_host} has NCCL {one}, and rank {rank} on {host} {two}: install the same on all machines"
            );
        }
    }
    Ok(())
}

/// A version of NCCL for people.
pub(super) fn version(counted: i32) -> String {
    format!("{}.{}.{}", counted / 10_000, counted / 100 % 100, counted % 100)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(host: &str, local: usize, count: usize, nccl: i32) -> RankInfo {
        RankInfo { host: host.into(), local, gpus: Ok(Gpus { count, nccl }) }
    }

    fn refused(ranks: &[RankInfo], expected: &str) {
        let said = judge(ranks).unwrap_err().to_string();
        assert!(said.contains(expected), "{said}");
    }

    #[test]
    fn rank_without_its_own_gpu_or_on_an_unlike_machine_is_an_error() {
        let fine = [info("a", 0, 2, 22_304), info("a", 1, 2, 22_304), info("b", 0, 2, 22_304), info("b", 1, 2, 22_304)];
        judge(&fine).unwrap();
        judge(&fine[..3]).unwrap(); // not all of a machine's GPUs
        let with = |i: usize, other: RankInfo| {
            let mut ranks = fine.to_vec();
            ranks[i] = other;
            ranks
        };
        refused(&with(1, info("a", 2, 2, 22_304)), "rank 1 on a has LOCAL_RANK 2, but may use 2 GPUs there");
        refused(&with(0, info("a", 0, 0, 22_304)), "rank 0 on a has LOCAL_RANK 0, but may use 0 GPUs there");
        refused(&with(3, info("b", 0, 2, 22_304)), "ranks 2 and 3 both have LOCAL_RANK 0 on b");
        refused(&with(2, info("b", 0, 4, 22_304)), "rank 0 on a may use 2 GPUs, and rank 2 on b 4: use machines alike");
        refused(&with(2, info("b", 0, 2, 21_805)), "rank 0 on a has NCCL 2.23.4, and rank 2 on b 2.18.5");
        let none = RankInfo { gpus: Err("there is no libnccl".into()), ..info("b", 0, 0, 0) };
        refused(&with(3, none.clone()), "rank 3 on b cannot run on a GPU: there is no libnccl");
        // It crosses from rank to rank as it is.
        let text = serde_json::to_vec(&none).unwrap();
        assert_eq!(serde_json::from_slice::<RankInfo>(&text).unwrap().gpus.unwrap_err(), "there is no libnccl");
    }
}
