//! Makes tiles of noisy clips on a GPU, by kernels/patches.cu: uploads frames as u8, and keeps there what a tile is
//! made of.

use candle_core::cuda_backend::cudarc::driver::{CudaSlice, DevicePtr, DevicePtrMut, DeviceRepr, PushKernelArg};
use candle_core::{CudaDevice, Tensor};
use std::cell::RefCell;
use std::ops::Range;

use super::NoisyClips;
use crate::cuda::{Kernel, KeyWords, Lent, THREADS, device_of, empty, tensor};
use crate::data::Frames;
use crate::{Result, bail};

/// `Frames` of kernels/patches.cu.
#[derive(Clone, Copy)]
#[repr(C)]
struct Pixels {
    pixels: u64,
    first: i32,
    top: i32,
    lines: i32,
    height: i32,
    width: i32,
    patch: [i32; 3],
}

// SAFETY: an address on the device and plain values, laid out as in C.
unsafe impl DeviceRepr for Pixels {}

/// The network's input on `rows`, `[n, C pt ph pw]`; the clips' pixels are on `device`.
pub(super) fn input(clips: &NoisyClips, rows: Range<usize>, device: &CudaDevice) -> Result<Tensor> {
    let dims = (rows.len(), clips.row());
    let mut x = empty::<f32>(device, dims.0 * dims.1)?;
    draw(clips, rows, device, [None, None, Some(&mut x)])?;
    Ok(tensor(x, dims, device))
}

/// The loss of the network's `output` on `rows`, which is on a GPU, and its gradient there.
pub(super) fn loss(clips: &NoisyClips, rows: Range<usize>, output: &Tensor) -> Result<(f64, Tensor)> {
    let (device, dims) = (device_of(output)?, (rows.len(), clips.row()));
    let [mut x0, mut noise] = [empty::<f32>(&device, dims.0 * dims.1)?, empty::<f32>(&device, dims.0 * dims.1)?];
    draw(clips, rows.clone(), &device, [Some(&mut x0), Some(&mut noise), None])?;
    let (x0, noise) = (tensor(x0, dims, &device), tensor(noise, dims, &device));
    let output = output.reshape(dims)?;
    let sums = RefCell::new((0.0, vec![]));
    clips.runs(rows, |clip, tokens, values| {
        let part = |t: &Tensor| t.narrow(0, values.start / dims.1, tokens.len());
        let parts = [part(&output)?, part(&x0)?, part(&noise)?];
        let (sum, gradient) =
            clips.objective.loss_of([&parts[0], &parts[1], &parts[2]], clip.sigma, clips.weight * clip.weight)?;
        let mut sums = sums.borrow_mut();
        sums.0 += clips.weight * sum;
        sums.1.push(gradient);
        Ok(())
    })?;
    let (loss, gradients) = sums.into_inner();
    Ok((loss, Tensor::cat(&gradients, 0)?))
}

/// Has x0, noise and the network's input of `rows` written, whichever are wanted.
fn draw(
    clips: &NoisyClips,
    rows: Range<usize>,
    device: &CudaDevice,
    wanted: [Option<&mut CudaSlice<f32>>; 3],
) -> Result<()> {
    let stream = device.cuda_stream();
    let mut guards = vec![]; // until the kernels are launched
    let mut addresses = [0; 3];
    for (address, slice) in addresses.iter_mut().zip(wanted) {
        if let Some(slice) = slice {
            let (at, guard) = slice.device_ptr_mut(&stream);
            *address = at;
            guards.push(guard);
        }
    }
    let kernel = Kernel::of(device, "noisy_patches")?;
    clips.runs(rows, |clip, tokens, values| {
        let (Some(pixels), row) = (&clip.pixels, clips.row()) else {
            bail!(Shape, "a clip's pixels are not on the GPU")
        };
        let lent = Lent::new(pixels);
        let view = lent.view::<u8>()?;
        let (pixels, _guard) = view.device_ptr(&stream);
        let Some(held) = clip.frames.pixels() else { bail!(Shape, "a clip on the GPU is not made of pixels") };
        let (frames, key) = (frames(held, pixels, clips.patch), KeyWords::from(clip.noise));
        let (token, count) = (tokens.start as i64, tokens.len() as i32);
        let (keep, add) = ((1.0 - clip.sigma) as f32, clip.sigma as f32);
        let [x0, noise, x] = addresses.map(|at| if at == 0 { 0 } else { at + 4 * values.start as u64 });
        let mut call = kernel.call();
        call.arg(&frames).arg(&key).arg(&token).arg(&count).arg(&keep).arg(&add).arg(&x0).arg(&noise).arg(&x);
        let threads = tokens.len() * row.div_ceil(16);
        // SAFETY: the kernel's arguments: addresses of the tile's rows or null, and of the frames that the rows lie in,
        // all held.
        unsafe { kernel.launch(call, [threads.div_ceil(THREADS), 1, 1]) }?;
        Ok(())
    })
}

fn frames(frames: &Frames, pixels: u64, patch: [usize; 3]) -> Pixels {
    Pixels {
        pixels,
        first: frames.first as i32,
        top: frames.lines.start as i32,
        lines: frames.lines.len() as i32,
        height: frames.height as i32,
        width: frames.width as i32,
        patch: patch.map(|n| n as i32),
    }
}
