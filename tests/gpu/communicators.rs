//! Tests two communicators of a process, called by two threads: their exchanges have one order on all ranks, or ranks
//! could wait for each other for ever, where the GPU has one queue for both.

use candle_core::{Device, Tensor};
use longreel::parallel::{Launch, Limits};
use std::process::{Command, Stdio};
use std::thread::{scope, sleep};
use std::time::{Duration, Instant};

/// Names the test to the ranks that it starts.
const NAME: &str = "communicators::exchanges_of_two_threads_have_one_order";

/// Long against what starts a thread.
const LATE: Duration = Duration::from_millis(300);

/// What a rank does, ten times: another thread gathers while its own thread does; on rank 0 the one comes late, on rank
/// 1 the other.
fn rank(launch: &Launch) {
    let done = launch.run(2, |comm| {
        let aside = comm.dup()?;
        let rank = comm.rank();
        let gathered =
            |x: u32, device: &Device| -> longreel::Result<Tensor> { Ok(Tensor::new(&[x + rank as u32], device)?) };
        for round in 0..10 {
            let late = |who: usize| {
                if who == rank && round % 3 == 0 {
                    sleep(LATE)
                }
            };
            aside.reserve();
            let sums = scope(|scope| {
                let other = scope.spawn(|| {
                    late(0);
                    aside.all_gather(&gathered(10 * round, &Device::Cpu)?, &[vec![1], vec![1]])
                });
                late(1);
                let own = comm.all_gather(&gathered(1000 * round, &Device::Cpu)?, &[vec![1], vec![1]])?;
                let other = other.join().expect("no panic")?;
                longreel::Result::Ok([own, other])
            })?;
            for (parts, each) in sums.iter().zip([1000, 10]) {
                let parts: Vec<u32> = parts.iter().map(|part| part.to_vec1::<u32>().unwrap()[0]).collect();
                assert_eq!(parts, [each * round, each * round + 1]);
            }
        }
        Ok(())
    });
    done.unwrap();
}

#[test]
fn exchanges_of_two_threads_have_one_order() {
    if std::env::var_os("RANK").is_some() {
        return rank(&Launch::from_environment(Limits::default()).unwrap());
    }
    if Device::new_cuda_with_stream(1).is_err() {
        return println!("skipped: one GPU is one rank");
    }
    let port = super::free_port().to_string();
    let began = Instant::now();
    let children: Vec<_> = (0..2)
        .map(|rank: usize| {
            let mut command = Command::new(std::env::current_exe().unwrap());
            command.args([NAME, "--exact", "--nocapture"]).env("EMULATED_QUEUES", "1");
            command.env("RANK", rank.to_string()).env("LOCAL_RANK", rank.to_string()).env("WORLD_SIZE", "2");
            command.env("MASTER_ADDR", "127.0.0.1").env("MASTER_PORT", &port);
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
        })
        .collect();
    children.into_iter().for_each(|child| drop(super::succeed(child.wait_with_output().unwrap())));
    assert!(began.elapsed() < Duration::from_secs(40), "ranks have waited for each other: {:?}", began.elapsed());
}
