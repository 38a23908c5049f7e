//! Tests stage 3: it prefetches the next unit while the present one is at work, and never uses what it fetched before a
//! change.

use super::{Case, values};
use candle_core::Tensor;
use longreel::Result;
use longreel::engine::{ParamHooks, Pass};
use longreel::model::UnitId;
use longreel::parallel::{Communicator, Reduce, run_threads};
use longreel::state::StateOptions;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

// Each rank has half of each unit.
const CASE: Case = Case { sequence: 2, data: 1, accumulate: 1, zero: 3 };

/// Counts gathers: the rank's own, and those beside it.
struct Counted {
    inner: Arc<dyn Communicator>,
    gathers: Arc<[AtomicUsize; 2]>,
    beside: usize,
}

impl Communicator for Counted {
    fn rank(&self) -> usize {
        self.inner.rank()
    }
    fn size(&self) -> usize {
        self.inner.size()
    }
    fn all_to_all(&self, send: Vec<Tensor>, shapes: &[Vec<usize>]) -> Result<Vec<Tensor>> {
        self.inner.all_to_all(send, shapes)
    }
    fn all_gather(&self, send: &Tensor, shapes: &[Vec<usize>]) -> Result<Vec<Tensor>> {
        let parts = self.inner.all_gather(send, shapes);
        self.gathers[self.beside].fetch_add(1, SeqCst);
        parts
    }
    fn reduce_scatter(&self, buffer: &Tensor, counts: &[usize]) -> Result<Tensor> {
        self.inner.reduce_scatter(buffer, counts)
    }
    fn all_reduce(&self, buffer: &Tensor, op: Reduce) -> Result<()> {
        self.inner.all_reduce(buffer, op)
    }
    fn broadcast(&self, buffer: &Tensor, root: usize) -> Result<()> {
        self.inner.broadcast(buffer, root)
    }
    fn barrier(&self) -> Result<()> {
        self.inner.barrier()
    }
    fn split(&self, color: usize, key: usize) -> Result<Arc<dyn Communicator>> {
        self.inner.split(color, key)
    }
    fn dup(&self) -> Result<Arc<dyn Communicator>> {
        Ok(Arc::new(Self { inner: self.inner.dup()?, gathers: self.gathers.clone(), beside: 1 }))
    }
}

#[test]
fn next_unit_is_prefetched_while_this_one_is_used() {
    run_threads(2, 1, |comm| {
        let gathers: Arc<[AtomicUsize; 2]> = Arc::default();
        let comm = Arc::new(Counted { inner: comm, gathers: gathers.clone(), beside: 0 });
        let weights = CASE.weights(comm, &StateOptions::default())?;
        // Nobody waits for what comes beside, so it comes at some time.
        let counts = |expected: [usize; 2]| {
            let start = Instant::now();
            let now = || [gathers[0].load(SeqCst), gathers[1].load(SeqCst)];
            while now() != expected && start.elapsed() < Duration::from_secs(20) {
                std::thread::sleep(Duration::from_millis(1));
            }
            assert_eq!(now(), expected);
        };
        let units: Vec<UnitId> = weights.model.units.iter().map(|unit| unit.id).collect();
        let last = units.len() - 1;
        for (number, &unit) in units[..last].iter().enumerate() {
            weights.before_use(unit, Pass::Forward)?;
            counts([1, number + 1]); // the first one was not asked for before
            weights.after_use(unit, Pass::Forward)?;
        }
        for (number, &unit) in units.iter().enumerate().rev() {
            weights.before_use(unit, Pass::Backward)?;
            counts([1, 2 * last + 1 - number.max(1)]);
            weights.after_use(unit, Pass::Backward)?;
        }
        Ok(())
    })
    .unwrap();
}

#[test]
fn prefetched_parameters_are_dropped_after_an_update() {
    run_threads(2, 1, |comm| {
        let weights = CASE.weights(comm.clone(), &StateOptions::default())?;
        let before = values(&weights)?;
        CASE.gradients(comm, &weights)?;
        let (embed, block) = (weights.model.embed.unit, weights.model.blocks[0].unit);
        weights.before_use(embed, Pass::Forward)?; // a pass that ends here, with the block's unit on its way
        weights.after_use(embed, Pass::Forward)?;
        weights.descend(0.05, 1.0)?;
        weights.before_use(block, Pass::Forward)?;
        let found = weights.model.unit(block).value.to_vec1::<f32>()?;
        weights.after_use(block, Pass::Forward)?;
        let after = values(&weights)?;
        let first = weights.model.unit(embed).value.elem_count();
        assert_eq!(found, after[first..first + found.len()]);
        assert_ne!(found, before[first..first + found.len()]);
        Ok(())
    })
    .unwrap();
}
