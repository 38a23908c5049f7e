//! Bridges Candle's storages and plain slices ([`read`], [`write`]) to write custom ops once for f32 and f64.

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::backend::BackendStorage;
use candle_core::{
    CpuStorage, CustomOp1, CustomOp2, InplaceOp1, Layout, Shape, Storage, StorageRef, Tensor, WithDType, bail,
};
use parking_lot::Mutex;
use std::{marker::PhantomData, ops::Range};

use super::Real;

type Candle<T> = candle_core::Result<T>;

#[cfg(feature = "cuda")]
use super::cuda::{Array, Numbers, host1, host2};

/// The values of a contiguous tensor, locked for reading; see [`read`].
pub enum Values<'a, T> {
    /// Where they are.
    Here(StorageRef<'a>, Range<usize>, PhantomData<T>),
    /// A copy of those on a GPU.
    Copied(Vec<T>),
}

/// The values of the contiguous tensor `t` as a slice; those on a GPU are copied from it.
pub fn read<T: WithDType>(t: &Tensor) -> Candle<Values<'_, T>> {
    let (storage, layout) = t.storage_and_layout();
    let Some((start, end)) = layout.contiguous_offsets() else { bail!("read: the tensor is not contiguous") };
    if !t.device().is_cpu() {
        drop(storage);
        return Ok(Values::Copied(t.flatten_all()?.to_vec1()?));
    }
    match &*storage {
        Storage::Cpu(values) => {
            let values = values.as_slice::<T>()?; // checks the dtype
            if values.len() < end {
                bail!("read: the tensor is released; its unit must be gathered before it is used")
            }
        }
        _ => bail!("read: the tensor is not on the CPU"),
    }
    Ok(Values::Here(storage, start..end, PhantomData))
}

impl<T: WithDType> std::ops::Deref for Values<'_, T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        match self {
            Self::Here(storage, range, _) => match &**storage {
                Storage::Cpu(values) => &values.as_slice::<T>().expect("checked by read")[range.clone()],
                _ => unreachable!("checked by read"),
            },
            Self::Copied(values) => values,
        }
    }
}

/// A tensor's element whose CPU storage can be changed in place.
pub trait Element: WithDType {
    /// The storage's values, if it is of this dtype.
    fn values_mut(storage: &mut CpuStorage) -> Option<&mut [Self]>;
}

macro_rules! elements {
    ($($t:ty: $variant:ident),*) => {$(
        impl Element for $t {
            fn values_mut(storage: &mut CpuStorage) -> Option<&mut [Self]> {
                match storage {
                    CpuStorage::$variant(values) => Some(values),
                    _ => None,
                }
            }
        }
    )*};
}
elements!(f32: F32, f64: F64, half::bf16: BF16, u8: U8);

/// Calls `f` with the values of the contiguous tensor `t`, to be changed in place. Those on a GPU are copied from it
/// and back, with all of their storage: for what is small or seldom.
///
/// `f` must not touch another tensor of the same storage, which is locked meanwhile. Work stealing makes this subtle:
/// while `f` waits in rayon, its thread may run any queued job, so no queued job may touch this storage either.
pub fn write<T: Element, R>(t: &Tensor, f: impl FnOnce(&mut [T]) -> R) -> Candle<R> {
    struct Write<F, R, T>(Mutex<(Option<F>, Option<R>)>, PhantomData<T>);
    impl<T: Element, R, F: FnOnce(&mut [T]) -> R> InplaceOp1 for Write<F, R, T> {
        fn name(&self) -> &'static str {
            "write"
        }

        fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Candle<()> {
            let Some((start, end)) = layout.contiguous_offsets() else { bail!("write: the tensor is not contiguous") };
            let dtype = storage.dtype();
            let Some(values) = T::values_mut(storage) else { bail!("write: {:?} wanted, got {dtype:?}", T::DTYPE) };
            if values.len() < end {
                bail!("write: the tensor is released; its unit must be gathered before it is used")
            }
            let mut slot = self.0.lock();
            if let Some(f) = slot.0.take() {
                slot.1 = Some(f(&mut values[start..end]));
            }
            Ok(())
        }

        #[cfg(feature = "cuda")]
        fn cuda_fwd(&self, storage: &mut CudaStorage, layout: &Layout) -> Candle<()> {
            use candle_core::backend::BackendDevice;
            let mut values = storage.to_cpu_storage()?;
            self.cpu_fwd(&mut values, layout)?;
            *storage = storage.device.storage_from_cpu_storage_owned(values)?;
            Ok(())
        }
    }
    let op = Write(Mutex::new((Some(f), None)), PhantomData::<T>);
    t.inplace_op1(&op)?;
    match op.0.into_inner() {
        (_, Some(result)) => Ok(result),
        _ => bail!("write: the closure did not run"),
    }
}

/// A differentiable op of one tensor, written once for f32 and f64. Shapes are `[rows, width]` unless it says
/// otherwise.
pub(crate) trait Op1: Send + Sync + 'static {
    const NAME: &'static str;

    /// The output's shape.
    fn shape(&self, x: &[usize]) -> Vec<usize> {
        x.to_vec()
    }

    /// `y` from `x` of shape `dims`.
    fn forward<T: Real>(&self, x: &[T], dims: &[usize]) -> Candle<Vec<T>>;

    /// The gradient of `x`, given that of `y`.
    fn backward<T: Real>(&self, x: &[T], y: &[T], dy: &[T], dims: &[usize]) -> Candle<Vec<T>>;

    /// [`forward`](Self::forward) on a GPU; on the CPU beside it where an op has nothing of its own.
    #[cfg(feature = "cuda")]
    fn gpu_forward(&self, x: Array) -> Candle<Numbers> {
        host1(x, |x, dims| self.forward::<f32>(x, dims))
    }

    /// [`backward`](Self::backward) does the same.
    #[cfg(feature = "cuda")]
    fn gpu_backward(&self, x: Array, y: Array, dy: Array) -> Candle<Numbers> {
        let (x_host, y_host) = (x.to_host()?, y.to_host()?);
        host1(dy, |dy, _| self.backward::<f32>(&x_host, &y_host, dy, &x.dims()))
    }
}

/// A differentiable op of two tensors, written once for f32 and f64; the output has the first one's shape.
pub(crate) trait Op2: Send + Sync + 'static {
    const NAME: &'static str;

    /// The output from `a` and `b` of shapes `dims`.
    fn forward<T: Real>(&self, a: &[T], b: &[T], dims: [&[usize]; 2]) -> Candle<Vec<T>>;

    /// The gradients of `a` and `b`, given that of the output; none stands for the output's own.
    fn backward<T: Real>(&self, ab: [&[T]; 2], dy: &[T], dims: [&[usize]; 2]) -> Candle<[Option<Vec<T>>; 2]>;

    /// [`forward`](Self::forward) on a GPU; on the CPU beside it where an op has nothing of its own.
    #[cfg(feature = "cuda")]
    fn gpu_forward(&self, a: Array, b: Array) -> Candle<Numbers> {
        host2(a, b, |ab, dims| self.forward::<f32>(ab[0], ab[1], dims))
    }

    /// [`backward`](Self::backward) does the same.
    #[cfg(feature = "cuda")]
    fn gpu_backward(&self, a: Array, b: Array, dy: Array) -> Candle<[Option<Numbers>; 2]> {
        let (a_host, b_host, dy_host) = (a.to_host()?, b.to_host()?, dy.to_host()?);
        let [da, db] = self.backward::<f32>([&a_host, &b_host], &dy_host, [&a.dims(), &b.dims()])?;
        let back = |values: Option<Vec<f32>>| values.map(|values| dy.device().clone_htod(&values)).transpose();
        Ok([back(da)?, back(db)?])
    }
}

/// Makes a Candle custom op of an [`Op1`] or [`Op2`].
pub(crate) struct Custom<O>(pub O);

impl<O: Op1> CustomOp1 for Custom<O> {
    fn name(&self) -> &'static str {
        O::NAME
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Candle<(CpuStorage, Shape)> {
        let dims = layout.dims();
        let shape = Shape::from(self.0.shape(dims));
        let storage = match storage {
            CpuStorage::F32(x) => CpuStorage::F32(self.0.forward(contiguous(x, layout, O::NAME)?, dims)?),
            CpuStorage::F64(x) => CpuStorage::F64(self.0.forward(contiguous(x, layout, O::NAME)?, dims)?),
            other => bail!("{}: f32 or f64 wanted, got {:?}", O::NAME, other.dtype()),
        };
        Ok((storage, shape))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, storage: &CudaStorage, layout: &Layout) -> Candle<(CudaStorage, Shape)> {
        let y = self.0.gpu_forward(Array::new(storage, layout, O::NAME)?)?;
        Ok((CudaStorage::wrap_cuda_slice(y, storage.device.clone()), Shape::from(self.0.shape(layout.dims()))))
    }

    fn bwd(&self, x: &Tensor, y: &Tensor, dy: &Tensor) -> Candle<Option<Tensor>> {
        fn go<O: Op1, T: Real>(op: &O, x: &Tensor, y: &Tensor, dy: &Tensor) -> Candle<Tensor> {
            let dx = op.backward::<T>(&read(x)?, &read(y)?, &read(dy)?, x.dims())?;
            Tensor::from_vec(dx, x.shape(), x.device())
        }
        let dy = dy.contiguous()?;
        #[cfg(feature = "cuda")]
        if x.device().is_cuda() {
            let lent = [x, y, &dy].map(crate::cuda::Lent::new);
            let [x, y, dy] = [lent[0].array(O::NAME)?, lent[1].array(O::NAME)?, lent[2].array(O::NAME)?];
            return Ok(Some(x.tensor(self.0.gpu_backward(x, y, dy)?)));
        }
        Ok(Some(match x.dtype() {
            candle_core::DType::F64 => go::<O, f64>(&self.0, x, y, &dy)?,
            _ => go::<O, f32>(&self.0, x, y, &dy)?,
        }))
    }
}

impl<O: Op2> CustomOp2 for Custom<O> {
    fn name(&self) -> &'static str {
        O::NAME
    }

    fn cpu_fwd(&self, a: &CpuStorage, la: &Layout, b: &CpuStorage, lb: &Layout) -> Candle<(CpuStorage, Shape)> {
        let dims = [la.dims(), lb.dims()];
        let storage = match (a, b) {
            (CpuStorage::F32(a), CpuStorage::F32(b)) => {
                CpuStorage::F32(self.0.forward(contiguous(a, la, O::NAME)?, contiguous(b, lb, O::NAME)?, dims)?)
            }
            (CpuStorage::F64(a), CpuStorage::F64(b)) => {
                CpuStorage::F64(self.0.forward(contiguous(a, la, O::NAME)?, contiguous(b, lb, O::NAME)?, dims)?)
            }
            (a, b) => bail!("{}: both f32 or both f64 wanted, got {:?} and {:?}", O::NAME, a.dtype(), b.dtype()),
        };
        Ok((storage, Shape::from(dims[0])))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, a: &CudaStorage, la: &Layout, b: &CudaStorage, lb: &Layout) -> Candle<(CudaStorage, Shape)> {
        let y = self.0.gpu_forward(Array::new(a, la, O::NAME)?, Array::new(b, lb, O::NAME)?)?;
        Ok((CudaStorage::wrap_cuda_slice(y, a.device.clone()), Shape::from(la.dims())))
    }

    fn bwd(&self, a: &Tensor, b: &Tensor, _: &Tensor, dy: &Tensor) -> Candle<(Option<Tensor>, Option<Tensor>)> {
        type Pair = (Option<Tensor>, Option<Tensor>);
        fn go<O: Op2, T: Real>(op: &O, a: &Tensor, b: &Tensor, dy: &Tensor) -> Candle<Pair> {
            let [da, db] = op.backward::<T>([&read(a)?, &read(b)?], &read(dy)?, [a.dims(), b.dims()])?;
            let tensor = |values: Option<Vec<T>>, x: &Tensor| match values {
                Some(values) => Tensor::from_vec(values, x.shape(), x.device()),
                None => Ok(dy.clone()),
            };
            Ok((Some(tensor(da, a)?), Some(tensor(db, b)?)))
        }
        let dy = dy.contiguous()?;
        #[cfg(feature = "cuda")]
        if a.device().is_cuda() {
            let lent = [a, b, &dy].map(crate::cuda::Lent::new);
            let [a, b, dy_array] = [lent[0].array(O::NAME)?, lent[1].array(O::NAME)?, lent[2].array(O::NAME)?];
            let [da, db] = self.0.gpu_backward(a, b, dy_array)?;
            let gradient =
                |values: Option<Numbers>, like: Array| values.map_or_else(|| dy.clone(), |values| like.tensor(values));
            return Ok((Some(gradient(da, a)), Some(gradient(db, b))));
        }
        match a.dtype() {
            candle_core::DType::F64 => go::<O, f64>(&self.0, a, b, &dy),
            _ => go::<O, f32>(&self.0, a, b, &dy),
        }
    }
}

/// The part of `values` that a contiguous `layout` covers.
pub(crate) fn contiguous<'a, T>(values: &'a [T], layout: &Layout, name: &str) -> Candle<&'a [T]> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&values[start..end]),
        None => bail!("{name}: the tensor is not contiguous"),
    }
}
