//! What the crate computes, in a file that the kernels' tests read.

use candle_core::{DType, Device, Tensor};
use longreel::data::{FrameRegion, Frames, RowOrder};
use longreel::diffusion::{channel_first, noise_rows, noisy, training_key};
use longreel::ops::{Draws, Dropout, Linear, LowRank, Param, Rope, Rows, Tape, rms_rope};
use longreel::rng::{Key, Purpose};
use longreel::state::optimizer::{AdamW, AdamWOptions, Shard, norm_squared};
use std::io::Write;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Arrays for a test program: for each a line "name count", then as many f64.
struct Arrays(std::fs::File);

impl Arrays {
    fn put<T: Copy + Into<f64>>(&mut self, name: &str, values: &[T]) {
        writeln!(self.0, "{name} {}", values.len()).unwrap();
        let bytes: Vec<u8> = values.iter().flat_map(|&value| value.into().to_le_bytes()).collect();
        self.0.write_all(&bytes).unwrap();
    }
}

/// What the crate computes, in a file at `path`.
pub fn computed(path: &Path) -> PathBuf {
    let mut arrays = Arrays(std::fs::File::create(path).unwrap());
    patches(&mut arrays, "patches", 7..29);
    patches(&mut arrays, "lines", 8..12);
    dropout(&mut arrays);
    adamw(&mut arrays);
    rope(&mut arrays);
    path.to_owned()
}

fn normal(sample: u64, len: usize) -> Vec<f32> {
    let mut out = vec![0.0; len];
    Key { seed: 3, purpose: Purpose::Test, step: 0, sample }.stream(0).fill_normal(&mut out);
    out
}

/// A rank's rows of a clip of 6 x 12 x 10 pixels, of patches of 60 numbers, which 16 does not divide.
fn patches(arrays: &mut Arrays, name: &str, tokens: Range<usize>) {
    let (patch, height, width) = ([1, 4, 5], 12, 10);
    let row = 3 * patch.iter().product::<usize>();
    let part = FrameRegion::of_tokens(tokens.clone(), [6, 3, 2], patch);
    let pixels: Vec<u8> = (0..part.bytes(width)).map(|i| (i * 37 + i / 256) as u8).collect();
    let (first, lines) = (part.frames.start, part.lines);
    let frames = Frames { first, lines: lines.clone(), height, width, data: pixels.clone() };
    let (key, sigma) = (training_key(u64::MAX - 5, 1 << 40, 3), 0.37);
    let mut rows = [(); 3].map(|()| vec![0.0; tokens.len() * row]);
    let [x0, noise, x] = &mut rows;
    frames.patch_rows(patch, tokens.clone(), RowOrder::ChannelLast, x0).unwrap();
    noise_rows(key, tokens.clone(), row, noise);
    let mut last = x.clone();
    noisy(x0, noise, sigma, &mut last);
    channel_first(&last, row, 3, x);
    let [pt, ph, pw] = patch;
    let shape = [first, lines.start, lines.len(), height, width, pt, ph, pw, tokens.start, tokens.len()];
    arrays.put(&format!("{name}.shape"), &shape.map(|n| n as u32));
    arrays.put(&format!("{name}.key"), &key.words());
    arrays.put(&format!("{name}.pixels"), &pixels);
    arrays.put(&format!("{name}.sigma"), &[sigma]);
    for (what, values) in ["x0", "noise", "x"].iter().zip(&rows) {
        arrays.put(&format!("{name}.{what}"), values);
    }
}

/// What is left of rows of 70 elements, which 32 does not divide, of the tokens of the second sample on a rank whose
/// first token is not the clip's: through an adapter of B A = 1 over a layer of zeros.
fn dropout(arrays: &mut Arrays) {
    let (rate, layer, n, width) = (0.3, 0xABCD_EF01_2345, 33, 70);
    let draws = Draws { seed: u64::MAX - 7, step: 1 << 33, samples: vec![2, 5], first_token: 11 };
    let rows = Rows { start: 40, tokens: 39 };
    let device = Device::Cpu;
    let one = Tensor::eye(width, DType::F32, &device).unwrap();
    let [w, a, b] = [one.zeros_like().unwrap(), one.clone(), one].map(|t| Param::leaf("p", t).unwrap());
    let bias = Param::leaf("b", Tensor::zeros(width, DType::F32, &device).unwrap()).unwrap();
    let dropout = Arc::new(Dropout::new(rate));
    dropout.draw_by(Some(draws.clone()));
    let low_rank = LowRank::new(a, b, 1.0).dropping(Some((dropout, layer)));
    let layers = Linear::new(w, bias, false).adapted(Some(low_rank));
    let x = normal(8, n * width);
    let input = Tensor::from_slice(&x, (n, width), &device).unwrap();
    let y = layers.at(rows, true).forward(&Tape::off(), &input).unwrap();
    let sample = draws.samples[1] ^ layer;
    let key = Key { seed: draws.seed, purpose: Purpose::AdapterDropout, step: draws.step, sample };
    let token = draws.first_token + rows.start - rows.tokens;
    let least = (rate * 65536.0).round() as usize;
    arrays.put("dropout.shape", &[token, n, width, least].map(|n| n as u32));
    arrays.put("dropout.key", &key.words());
    arrays.put("dropout.scale", &[1.0 / (1.0 - rate)]);
    arrays.put("dropout.x", &x);
    arrays.put("dropout.y", &y.flatten_all().unwrap().to_vec1::<f32>().unwrap());
}

/// Step 7 of a buffer with ranges without decay at its ends, next to each other, empty, and across blocks of 256.
fn adamw(arrays: &mut Arrays) {
    let (n, step, lr, scale, betas, eps, weight_decay, decay) = (1100, 7, 1e-2, 0.4, [0.9, 0.99], 1e-8, 0.1, 0.95);
    let no_decay = [0..3, 3..10, 200..200, 250..700, 1090..1100];
    let optimizer = AdamW::new(options!(AdamWOptions::default(); betas, eps, weight_decay)).unwrap();
    let (mut params, grads, mut m) = (normal(1, n), normal(2, n), normal(3, n));
    let mut v: Vec<f32> = normal(4, n).iter().map(|x| x * x).collect();
    let mut average = normal(5, n);
    let bias = betas.map(|beta: f64| 1.0 - beta.powi(step as i32));
    let constants = [1.0 - betas[0], 1.0 - betas[1], scale, lr / bias[0], 1.0 / bias[1].sqrt(), eps, lr * weight_decay];
    arrays.put("adamw.step", &[&betas[..], &constants[..], &[1.0 - decay]].concat());
    arrays.put("adamw.no_decay", &no_decay.iter().flat_map(|r| [r.start as u32, r.end as u32]).collect::<Vec<_>>());
    let shard = [("params", &params), ("grads", &grads), ("m", &m), ("v", &v), ("average", &average)];
    for (name, values) in shard {
        arrays.put(&format!("adamw.{name}"), values);
    }
    let mine = Shard { params: &mut params, grads: &grads, m: &mut m, v: &mut v, average: Some((decay, &mut average)) };
    optimizer.update(step, lr, scale, mine, &no_decay).unwrap();
    let shard = [("params", &params), ("m", &m), ("v", &v), ("average", &average)];
    for (name, values) in shard {
        arrays.put(&format!("adamw.new_{name}"), values);
    }
    arrays.put("adamw.norm_squared", &[norm_squared(&grads)]);
}

/// Two heads of 22 features (6, 6 and, of time, 10), on a rank whose first token is not the clip's.
fn rope(arrays: &mut Arrays) {
    let (grid, first, d, rows, n, theta): (_, _, usize, _, _, f64) =
        ([4, 3, 5], 13, 22, Rows { start: 40, tokens: 31 }, 50, 1e4);
    let (width, side) = (2 * d, 2 * (d / 6));
    let (x, weight) = (normal(6, n * width), normal(7, width));
    let param = Param::leaf("weight", Tensor::from_slice(&weight, width, &Device::Cpu).unwrap()).unwrap();
    let input = Tensor::from_slice(&x, (n, width), &Device::Cpu).unwrap();
    let y = rms_rope(&Tape::off(), &input, &param, 1e-6, &Rope::new(grid, first, d, theta), rows).unwrap();
    let mut table = vec![];
    for (features, positions) in [d - 2 * side, side, side].into_iter().zip(grid) {
        for position in 0..positions {
            let angles = (0..features / 2).map(|i| position as f64 * theta.powf(-2.0 * i as f64 / features as f64));
            table.extend(angles.flat_map(|angle| [angle.cos() as f32, angle.sin() as f32]));
        }
    }
    let shape = [grid[0], grid[1], grid[2], first, d, rows.start, rows.tokens, width].map(|n| n as u32);
    arrays.put("rope.shape", &shape);
    arrays.put("rope.table", &table);
    arrays.put("rope.x", &x);
    arrays.put("rope.weight", &weight);
    arrays.put("rope.y", &y.flatten_all().unwrap().to_vec1::<f32>().unwrap());
}
