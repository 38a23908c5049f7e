//! Tests what a step meter says of an engine's step: the operations counted come to the total announced, to the
//! operation; a rank that is asked to stop skips the rest at once, and no other rank waits for it.

use crate::attention::{delta, inputs};
use crate::engine::{Case, GRID, ONE, Squares, conditioning, model};
use candle_core::{DType, Device, Tensor};
use longreel::Result;
use longreel::attention::{Qkv, Ring, SavedRows};
use longreel::engine::stash::{Stash, StashOptions};
use longreel::engine::{Engine, Objective, Source};
use longreel::observe::meter::{Section, StepMeter, StepTimes, Traffic};
use longreel::parallel::{Communicator, Mesh, Metered, Reduce, Single, run_threads};
use longreel::plan::flops;
use parking_lot::Mutex;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Squares, with something done before each loss.
struct Before<'a> {
    squares: Squares,
    then: &'a dyn Fn(),
}

impl Source for Before<'_> {
    fn input(&self, rows: Range<usize>) -> Result<Tensor> {
        self.squares.input(rows)
    }
}

impl Objective for Before<'_> {
    fn loss(&self, rows: Range<usize>, output: &Tensor) -> Result<(f64, Tensor)> {
        (self.then)();
        self.squares.loss(rows, output)
    }
}

/// A step on each rank: work done and announced, and what was spent. `then` is called before each loss.
fn step(
    case: Case,
    threads: usize,
    keep_attention: bool,
    then: impl Fn(&StepMeter, usize) + Sync,
) -> Vec<([u64; 2], StepTimes)> {
    let ranks = run_threads(case.ranks, threads, |comm| {
        let (rank, meter) = (comm.rank(), Arc::new(StepMeter::default()));
        let mesh = Mesh::new(Arc::new(Metered::new(comm, meter.clone())), case.data, case.heads, case.ring)?;
        let (model, clips) = (model(case.dtype, case.heads, case.bf16)?, vec![0, 1]);
        let stash = Stash::open(&options!(StashOptions::default(); keep_attention), rank, &Device::Cpu)?;
        let engine = Engine::new(&model, &mesh.sequence, GRID, 2, case.tile)?
            .with_meter(meter.clone())
            .with_stash(Arc::new(Mutex::new(stash)))
            .in_head_groups(case.head_groups)?; // called last, it must not forget the meter
        let squares =
            Squares { clips: clips.clone(), tokens: engine.local_tokens(), dtype: case.dtype, weight: case.scale };
        meter.begin(engine.operations());
        engine.loss_and_gradients(&conditioning(&clips)?, &Before { squares, then: &|| then(&meter, rank) })?;
        Ok((meter.work(), meter.end()))
    });
    ranks.unwrap()
}

#[test]
fn counted_operations_add_up_to_the_announced_total() {
    let grids = [(1, 0, 5, 1), (1, 0, 5, 3), (2, 1, 5, 2), (2, 2, 3, 3), (3, 3, 4, 3), (4, 2, 5, 2), (5, 0, 5, 1)];
    for (ranks, ring, heads, head_groups) in grids {
        for (bf16, dtype) in [(false, DType::F32), (true, DType::F32), (false, DType::F64)] {
            for (threads, tile, keep) in [(1, 7, true), (2, 0, true), (3, 8, false)] {
                let case = Case { ranks, ring, heads, head_groups, bf16, dtype, tile, ..ONE };
                let watched = step(case, threads, keep, |_, _| {});
                let what =
                    format!("P {ranks} ring {ring} H {heads} in {head_groups}, {dtype:?} bf16 {bf16}, {threads}");
                for (rank, ([done, total], _)) in watched.iter().enumerate() {
                    assert_eq!(done, total, "{what}: rank {rank}");
                }
                // Ranks have shares of one work, of which attention's part is known elsewhere: two clips, two blocks.
                let all: u64 = watched.iter().map(|(work, _)| work[1]).sum();
                let passes = flops::ATTENTION_BOTH + if keep { 0.0 } else { 1.0 };
                let attention = 4.0 * passes * flops::attention(45, heads, 8);
                let linear = linear(heads, head_groups, keep);
                assert_eq!(all as f64, attention + linear, "{what}");
            }
        }
    }
}

/// Products of all tokens of two clips through two blocks and the ends: forward once, again what is recomputed, and two
/// for each of those in backward.
fn linear(heads: usize, groups: usize, keep: bool) -> f64 {
    let (d, n, groups) = (8 * heads, 90, groups as f64);
    let square = flops::linear(n, d, d);
    let before = 3.0 * square * (groups * if keep { 2.0 } else { 3.0 } + 3.0);
    // with text: two more squares, less its keys'
    let after = 4.0 * (3.0 * square + flops::linear(n, d, 24) + flops::linear(n, 24, d));
    2.0 * (before + after) + 2.0 * flops::linear(n, 3, d) + 3.0 * flops::linear(n, d, 2)
}

#[test]
fn meter_separates_sections_and_traffic() {
    let spent = step(Case { ranks: 2, ..ONE }, 1, true, |_, _| std::thread::sleep(Duration::from_millis(20)));
    for (_, spent) in &spent {
        assert!(spent.of(Section::Head) > Duration::from_millis(20), "{spent:?}");
        for part in [Section::Embed, Section::Before, Section::Attention, Section::After, Section::Exchange] {
            assert!(!spent.of(part).is_zero() && spent.of(part) < Duration::from_secs(5), "{}", part.name());
        }
    }
    // Rank 0 has 22 of 45 tokens and 2 of 5 heads. It sends its tokens of the other's 3 heads (q, k, v, do; delta) and
    // its heads of the other's 23 tokens (o, dq, dk, dv), of two clips, in two blocks, as f32.
    let [tokens, heads] = [22 * 3, 23 * 2];
    let expected = 2 * 2 * 4 * (7 * 8 * tokens + tokens + 4 * 8 * heads);
    assert_eq!(spent[0].1.moved(Traffic::AllToAll), expected);
    assert_eq!(spent[0].1.moved(Traffic::AllReduce), 0, "the engine sums nothing over ranks");
}

/// Time belongs to one part at a time, and the rank is at another while a thread beside it waits for messages.
#[test]
fn calls_from_other_threads_count_bytes_but_no_time() {
    let spent = run_threads(2, 1, |comm| {
        let meter = Arc::new(StepMeter::default());
        let comm: Arc<dyn Communicator> = Arc::new(Metered::new(comm, meter.clone()));
        let dup = comm.dup()?;
        meter.begin(1);
        for beside in [dup.split(0, dup.rank())?, dup] {
            beside.all_reduce(&Tensor::zeros(6, DType::F32, &Device::Cpu)?, Reduce::Sum)?;
            beside.barrier()?;
        }
        let beside = meter.spent();
        comm.barrier()?;
        Ok([beside, meter.end()])
    });
    for [beside, all] in spent.unwrap() {
        assert!(beside.of(Section::Exchange).is_zero(), "{beside:?}");
        assert_eq!(beside.moved(Traffic::AllReduce), 2 * 6 * 4); // half of six f32 twice, by two calls
        assert!(!all.of(Section::Exchange).is_zero(), "the rank's own calls take time");
    }
}

#[test]
fn stopped_rank_keeps_no_other_rank_waiting() {
    for (ranks, ring, heads) in [(1, 1, 5), (2, 1, 5), (3, 3, 2), (4, 2, 5)] {
        let case = Case { ranks, ring, heads, tile: 8, ..ONE };
        let watched = step(case, 2, true, |meter, rank| {
            if rank == 0 {
                meter.ask_to_stop(); // within its head's first tile
            }
        });
        let [done, total] = watched[0].0;
        assert!(done > 0 && done < total / 2, "{ranks} ranks: {done} of {total}");
        assert!(watched[1..].iter().all(|([done, total], _)| done == total), "{ranks} ranks: another has stopped too");
    }
}

#[test]
fn attention_stops_in_the_midst_of_a_pass() {
    let x = inputs(1, 1, [40_000, 40_000], 64, DType::F32); // 0.4 and 1 TFLOP
    let [q, k, v, d_o] = &x;
    let lse = Tensor::zeros((1, 1, 40_000), DType::F32, q.device()).unwrap();
    let delta = delta(d_o, v);
    let (qkv, saved) = (Qkv::new(q, k, v), SavedRows::new(d_o, &lse, &delta));
    let all = 4 * 64 * 40_000u64.pow(2);
    for (backward, total) in [(false, all), (true, all / 4 * 10)] {
        let meter = Arc::new(StepMeter::default());
        meter.begin(total);
        let ring = Ring::new(Arc::new(Single), 40_000).unwrap().metered(meter.clone());
        let ended = std::thread::scope(|scope| {
            let asked = scope.spawn(|| {
                while meter.work()[0] == 0 {
                    std::thread::sleep(Duration::from_millis(1)); // until some rows are done
                }
                meter.ask_to_stop();
                Instant::now()
            });
            let pass = |_: Arc<dyn Communicator>| match backward {
                true => ring.backward(qkv, saved, 0.125).map(|_| ()),
                false => ring.forward(qkv, 0.125).map(|_| ()),
            };
            run_threads(1, 2, pass).unwrap();
            asked.join().unwrap().elapsed()
        });
        let [done, _] = meter.work();
        assert!(done > 0 && done < total / 4 && meter.skipped(), "backward {backward}: {done} of {total}");
        assert!(ended < Duration::from_secs(2), "backward {backward}: it took {ended:?} more");
    }
}
