//! Every collective on processes against the same on threads, bit for bit; and what waiting costs.

use super::*;
use crate::parallel::collectives::{mixed, uneven};
use crate::parallel::ulysses::every_element;
use crate::parallel::{bits, f32s, wide};
use candle_core::{DType, Device, Tensor};
use longreel::parallel::{Communicator, Reduce, run_threads};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What a rank has after one call of each collective with uneven counts, on all ranks and on two parts of them.
fn results(world: Arc<dyn Communicator>) -> Result<Vec<Vec<u32>>> {
    let (p, r) = (world.size(), world.rank());
    let parts = [world.clone(), world.split(r % 2, p - r)?, world.split(r / 2, r)?];
    let mut results = vec![];
    for (number, comm) in parts.iter().enumerate() {
        let (p, me, draw) = (comm.size(), comm.rank(), 10 * number as u64);
        results.push(vec![p as u32, me as u32]);
        let counts = uneven(p);
        let n: usize = counts.iter().sum();
        for op in [Reduce::Sum, Reduce::Max, Reduce::Min] {
            // A view into a larger buffer: what lies around it must stay.
            let all = Tensor::cat(&[&f32s(&[-1.5]), &f32s(&wide(draw, r as u64, 20_001)), &f32s(&[2.5])], 0)?;
            comm.all_reduce(&all.narrow(0, 1, 20_001)?, op)?;
            results.push(bits(&all));
        }
        let buffer = f32s(&wide(draw + 1, r as u64, n));
        results.push(bits(&comm.reduce_scatter(&buffer, &counts)?));
        assert_eq!(bits(&buffer), bits(&f32s(&wide(draw + 1, r as u64, n))), "the buffer must stay");
        let double = Tensor::new(&[0.1 * r as f64, 1e300][..], &Device::Cpu)?;
        comm.all_reduce(&double, Reduce::Sum)?;
        results
            .extend(double.to_vec1::<f64>()?.iter().map(|x| [x.to_bits() as u32, (x.to_bits() >> 32) as u32].into()));

        let shapes: Vec<Vec<usize>> = counts.iter().map(|&n| vec![n, 2]).collect();
        for dtype in [DType::F32, DType::BF16, DType::F64, DType::I64, DType::U8] {
            let values = f32s(&wide(draw + 2, r as u64, 2 * counts[me])).abs()?.to_dtype(dtype)?;
            let strided = values.reshape((2, counts[me]))?.t()?;
            for t in comm.all_gather(&strided, &shapes)? {
                results.push(bits(&t.to_dtype(DType::F32)?));
            }
            let root = p - 1;
            let whole = (Tensor::ones((3, 70), DType::F32, &Device::Cpu)? * (r + 1) as f64)?.to_dtype(dtype)?;
            comm.broadcast(&whole.narrow(0, 1, 2)?, root)?;
            results.push(bits(&whole.to_dtype(DType::F32)?));
        }

        // What was gathered is this rank's own: its buffer may change at once.
        let mine = f32s(&wide(draw + 4, r as u64, counts[me]));
        let gathered = comm.all_gather(&mine, &counts.iter().map(|&n| vec![n]).collect::<Vec<_>>())?;
        mine.slice_set(&mine.zeros_like()?, 0, 0)?;
        results.extend(gathered.iter().map(bits));

        let count = |from: usize, to: usize| (from * 5 + to * 3) % 4 * 1000; // some are 0
        let send = (0..p).map(|to| f32s(&wide(draw + 3, (10 * r + to) as u64, count(me, to)))).collect();
        let shapes: Vec<_> = (0..p).map(|from| vec![count(from, me)]).collect();
        results.extend(comm.all_to_all(send, &shapes)?.iter().map(bits));
        comm.barrier()?;
    }
    from_two_threads(&world)?;
    let exchanged = every_element(world.clone())?;
    mixed(world, 200)?;
    results.push(vec![exchanged as u32]);
    Ok(results)
}

/// Calls of two communicators of the same ranks, from two threads at once, do not meet each other.
fn from_two_threads(world: &Arc<dyn Communicator>) -> Result<()> {
    let same = world.split(0, world.rank())?;
    let calls = |comm: &Arc<dyn Communicator>, code: f32, pause: u64| -> Result<()> {
        for call in 0..60 {
            let x = f32s(&[code + call as f32; 3]);
            comm.all_reduce(&x, Reduce::Max)?;
            assert_eq!(x.to_vec1::<f32>()?, [code + call as f32; 3]);
            std::thread::sleep(Duration::from_micros(pause * (comm.rank() as u64 + call) % 700));
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let aside = scope.spawn(|| calls(&same, 1000.0, 113));
        calls(world, 0.0, 157)?;
        aside.join().expect("no panic")
    })
}

/// On a process: its [`results`], as a file of its rank.
pub fn save(launch: &Launch, folder: &Path) -> Result<()> {
    let Some(ranks) = launch.processes() else { bail!(Environment, "not under mpirun") };
    let saved = |comm: Arc<dyn Communicator>| {
        let file = folder.join(comm.rank().to_string());
        let text = serde_json::to_string(&results(comm)?).map_err(|e| Error::Data(e.to_string()))?;
        std::fs::write(&file, text).map_err(|e| Error::io(&file, e))
    };
    launch.run(ranks, saved).map(|_| ())
}

#[test]
fn every_collective_gives_the_bits_that_threads_give() {
    for p in [2, 3, 4] {
        let threads = run_threads(p, 1, results).unwrap();
        for message in [1 << 30, 264] {
            let folder = tempfile::tempdir().unwrap();
            let output = on_processes(p, &format!("collectives {message}"), folder.path());
            assert!(output.status.success(), "{}", text(&output.stderr));
            for (rank, expected) in threads.iter().enumerate() {
                let text = std::fs::read_to_string(folder.path().join(rank.to_string())).unwrap();
                let got: Vec<Vec<u32>> = serde_json::from_str(&text).unwrap();
                assert_eq!(got.len(), expected.len());
                let wrong: Vec<usize> = (0..got.len()).filter(|&i| got[i] != expected[i]).collect();
                assert!(wrong.is_empty(), "rank {rank} of {p}, messages of {message}: results {wrong:?} differ");
            }
        }
    }
}

/// Seconds of processor time of this process so far.
fn processor_time() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    let ticks: f64 = fields[11..13].iter().map(|field| field.parse::<f64>().unwrap()).sum();
    ticks / 100.0 // sysconf(_SC_CLK_TCK), on every Linux
}

/// On a process: rank 0 comes two seconds late, the others wait.
pub fn waiting(launch: &Launch) -> Result<()> {
    let work = |comm: Arc<dyn Communicator>| {
        comm.barrier()?;
        let (start, used) = (Instant::now(), processor_time());
        if comm.rank() == 0 {
            std::thread::sleep(Duration::from_secs(2));
        }
        comm.barrier()?;
        let (waited, used) = (start.elapsed().as_secs_f64(), processor_time() - used);
        if waited < 1.9 || used > 0.2 * waited {
            bail!(Environment, "waiting for {waited:.2} s took {used:.2} s of a processor")
        }
        Ok(())
    };
    launch.run(launch.processes().unwrap_or(0), work).map(|_| ())
}

#[test]
fn who_waits_leaves_the_processor_to_others() {
    let folder = tempfile::tempdir().unwrap();
    let output = on_processes(4, "waiting", folder.path());
    assert!(output.status.success(), "{}", text(&output.stderr));
}

/// On a process: messages of more bytes than a C int counts, which every collective carries.
pub fn long(launch: &Launch) -> Result<()> {
    let work = |comm: Arc<dyn Communicator>| {
        let n = (5 << 29) + 11; // bytes: 2.5 GiB and a bit
        let byte = |from: usize, i: usize| (i % 251) as u8 ^ (from as u8 + 1);
        let right = |t: &Tensor, from: usize| -> Result<bool> {
            Ok(t.to_vec1::<u8>()?.iter().enumerate().all(|(i, &x)| x == byte(from, i)))
        };
        let mine = Tensor::from_vec((0..n).map(|i| byte(comm.rank(), i)).collect::<Vec<_>>(), n, &Device::Cpu)?;
        let other = 1 - comm.rank();
        let nothing = Tensor::zeros(0, DType::U8, &Device::Cpu)?;
        let (mut send, mut shapes) = (vec![nothing.clone(), nothing], vec![vec![0]; 2]);
        (send[other], shapes[other]) = (mine.clone(), vec![n]);
        let start = Instant::now();
        let received = comm.all_to_all(send, &shapes)?;
        eprintln!("rank {}: {n} bytes in {:.2} s", comm.rank(), start.elapsed().as_secs_f64());
        if !right(&received[other], other)? {
            bail!(Data, "all_to_all brought other bytes")
        }
        drop(received);
        comm.broadcast(&mine, 0)?;
        if !right(&mine, 0)? {
            bail!(Data, "broadcast brought other bytes")
        }
        drop(mine);
        let numbers = n / 4;
        let value = |from: usize, i: usize| (i % 1009) as f32 * (from + 1) as f32;
        let of = |from: usize| (0..numbers).map(move |i| value(from, i));
        let sum = Tensor::from_vec(of(comm.rank()).collect::<Vec<_>>(), numbers, &Device::Cpu)?;
        comm.all_reduce(&sum, Reduce::Sum)?;
        if sum.to_vec1::<f32>()?.iter().enumerate().any(|(i, &x)| x != value(0, i) + value(1, i)) {
            bail!(Data, "all_reduce gave another sum")
        }
        Ok(())
    };
    launch.run(launch.processes().unwrap_or(0), work).map(|_| ())
}

#[test]
#[ignore = "20 GiB of memory: cargo test --release --features mpi messages_beyond -- --ignored"]
fn messages_beyond_2_gib() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "mpi::child", "--ignored", "--nocapture"]);
    // Not `run`, which waits for a minute at most.
    let output = mpirun(2, &command)
        .env("LONGREEL_TEST_WORK", "long")
        .env("LONGREEL_TEST_FOLDER", folder.path())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    eprintln!("{}", text(&output.stderr));
}
