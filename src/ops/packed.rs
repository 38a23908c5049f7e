//! Packs a weight once for all products of a pass, while a guard pins it.

use candle_core::{DType, Result};
use half::bf16;
use parking_lot::Mutex;
use std::sync::{Arc, Weak};

use super::low_rank::LowRank;
use super::products::{Packed, WeightMatrix, WeightValues};
use super::{Linear, Param, Real, read};
use crate::simd::Isa;

/// How a layer's products are computed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Arithmetic {
    pub isa: Isa,
    /// Round operands to bf16 (f32 only).
    pub bf16: bool,
}

impl Arithmetic {
    /// The best of this CPU.
    pub fn best(bf16: bool) -> Self {
        Self { isa: Isa::best(), bf16 }
    }
}

/// The packed form of a weight, shared by all clones of its layer while someone has it.
#[derive(Clone, Debug, Default)]
pub(super) struct PackedSlot(Arc<Mutex<Weak<Packed>>>);

/// Keeps a layer's weights packed until it is dropped.
pub struct PackedGuard(#[expect(dead_code, reason = "held for its drop")] pub(super) Vec<Arc<Packed>>);

impl PackedSlot {
    /// The packed form, which is made as products ask for it. The weight must not change while it is held.
    pub fn get(&self) -> Arc<Packed> {
        let mut slot = self.0.lock();
        slot.upgrade().unwrap_or_else(|| {
            let packed = Arc::new(Packed::default());
            *slot = Arc::downgrade(&packed);
            packed
        })
    }

    /// Calls `f` with `weight` `[out, in]` as the products want it. It may be bf16 where the layer is not.
    pub fn with<T: Real, R>(
        &self,
        weight: &Param,
        Arithmetic { isa, bf16 }: Arithmetic,
        f: impl FnOnce(&WeightMatrix<T>) -> Result<R>,
    ) -> Result<R> {
        let (out, inner) = weight.value.dims2()?;
        let packed = self.get();
        let matrix = |values| WeightMatrix { values, out, inner, isa, bf16, packed: &packed };
        if weight.value.dtype() == DType::BF16 {
            let values = read::<bf16>(&weight.value)?;
            return f(&matrix(WeightValues::Bf16(&values)));
        }
        let values = read::<T>(&weight.value)?;
        f(&matrix(WeightValues::Same(&values)))
    }
}

impl Linear {
    /// The same layer on one instruction set, for tests and benchmarks.
    pub fn on(self, isa: Isa) -> Self {
        let low_rank = self.low_rank.map(LowRank::unpacked);
        Self { how: Arithmetic { isa, ..self.how }, packed: PackedSlot::default(), low_rank, ..self }
    }
}
