//! The tape: what was computed of one tile, so that it can be differentiated there and then.
//!
//! Candle's own graph could serve, and its ops are used: every entry is a Candle custom op with a `bwd`. But its
//! `backward` fills a tensor with zeros and adds to it for every edge, on one thread pool that all ranks of a process
//! wait for, and cannot be told where to start. A tape hands gradients on as they come, adds only where two meet, frees
//! each entry once it is differentiated, and starts from given gradients. Forward passes run the same code with a tape
//! that is off.

use candle_core::{CustomOp1, CustomOp2, Result, Tensor, TensorId, bail};
use std::cell::RefCell;
use std::collections::HashMap;

use super::elementwise::sum;

/// What was computed, in order.
pub struct Tape(Option<RefCell<Vec<Entry>>>);

/// An op, what went in and what came out.
enum Entry {
    One(Box<dyn CustomOp1 + Send + Sync>, Tensor, Tensor),
    Two(Box<dyn CustomOp2 + Send + Sync>, [Tensor; 2], Tensor),
}

impl Tape {
    /// A tape that records.
    pub fn recording() -> Self {
        Self(Some(RefCell::new(vec![])))
    }

    /// A tape that records nothing: for forward passes that will not be differentiated.
    pub fn off() -> Self {
        Self(None)
    }

    /// Whether a backward pass may come, so that ops must keep what it needs.
    pub fn records(&self) -> bool {
        self.0.is_some()
    }

    /// The op's value for `x`.
    pub fn one(&self, x: &Tensor, op: impl CustomOp1 + Send + Sync + 'static) -> Result<Tensor> {
        let y = x.apply_op1_no_bwd(&op)?;
        if let Some(entries) = &self.0 {
            entries.borrow_mut().push(Entry::One(Box::new(op), x.clone(), y.clone()));
        }
        Ok(y)
    }

    /// The op's value for `a` and `b`.
    pub fn two(&self, a: &Tensor, b: &Tensor, op: impl CustomOp2 + Send + Sync + 'static) -> Result<Tensor> {
        let y = a.apply_op2_no_bwd(b, &op)?;
        if let Some(entries) = &self.0 {
            entries.borrow_mut().push(Entry::Two(Box::new(op), [a.clone(), b.clone()], y.clone()));
        }
        Ok(y)
    }

    /// The gradients of `inputs`, given the gradients of `outputs`: pairs (output, its gradient). Ops that own weights
    /// add their weight gradients on the way. An input that no output depends on gets zeros.
    ///
    /// # Errors
    /// If a gradient has another shape than its output, or if nothing asks for a recorded result: then a value was
    /// taken past the tape (a Candle op, a reshape) and gradients would be cut without a word.
    pub fn backward(self, outputs: &[(&Tensor, &Tensor)], inputs: &[&Tensor]) -> Result<Vec<Tensor>> {
        let mut gradients = Gradients(HashMap::new());
        for (output, gradient) in outputs {
            if output.dims() != gradient.dims() {
                bail!("backward: output {:?} against gradient {:?}", output.dims(), gradient.dims())
            }
            gradients.add(output, (*gradient).clone())?;
        }
        for entry in self.0.map(RefCell::into_inner).into_iter().flatten().rev() {
            match entry {
                Entry::One(op, x, y) => {
                    let dy = gradients.take(&y, op.name())?;
                    if let Some(dx) = op.bwd(&x, &y, &dy)? {
                        gradients.add(&x, dx)?;
                    }
                }
                Entry::Two(op, [a, b], y) => {
                    let dy = gradients.take(&y, op.name())?;
                    let (da, db) = op.bwd(&a, &b, &y, &dy)?;
                    for (x, dx) in [(&a, da), (&b, db)] {
                        if let Some(dx) = dx {
                            gradients.add(x, dx)?;
                        }
                    }
                }
            }
        }
        inputs.iter().map(|x| gradients.0.get(&x.id()).map_or_else(|| x.zeros_like(), |dx| Ok(dx.clone()))).collect()
    }
}

/// Gradients that have come so far.
struct Gradients(HashMap<TensorId, Tensor>);

impl Gradients {
    fn add(&mut self, x: &Tensor, dx: Tensor) -> Result<()> {
        let dx = match self.0.remove(&x.id()) {
            Some(before) => sum(&before, &dx)?,
            None => dx,
        };
        self.0.insert(x.id(), dx);
        Ok(())
    }

    fn take(&mut self, y: &Tensor, name: &str) -> Result<Tensor> {
        match self.0.remove(&y.id()) {
            Some(dy) => Ok(dy),
            None => bail!("backward: no gradient reaches a recorded result of {name}"),
        }
    }
}
