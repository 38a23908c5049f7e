//! Rotary positions, behind the RMSNorm that they share a pass with: uneven axes, shards that start anywhere, several
//! samples, head widths that 6 does and does not divide.

use super::{Op, close, normal, values};
use candle_core::{Device, Tensor};
use longreel::ops::{Param, Rope, Rows, Tape, plain, rms_rope};

const THETA: f64 = 10_000.0;

/// Large enough to show in the result.
const EPS: f64 = 1e-2;

/// Features of a head for time, height and width, as Wan splits them, written out.
fn split(d: usize) -> [usize; 3] {
    match d {
        8 => [4, 2, 2],
        16 => [8, 4, 4],
        24 => [8, 8, 8],
        40 => [16, 12, 12],
        128 => [44, 42, 42],
        _ => unreachable!(),
    }
}

/// The angle of every pair of a head at (t, h, w), for these tokens of the grid: `[n, d / 2]`.
fn angles(grid: [usize; 3], d: usize, tokens: &[usize]) -> Tensor {
    let mut places = vec![];
    for t in 0..grid[0] {
        for h in 0..grid[1] {
            for w in 0..grid[2] {
                places.push([t, h, w]);
            }
        }
    }
    let mut all = vec![];
    for &token in tokens {
        for (place, features) in places[token].into_iter().zip(split(d)) {
            for i in (0..features).step_by(2) {
                all.push(place as f64 / THETA.powf(i as f64 / features as f64));
            }
        }
    }
    Tensor::from_vec(all, (tokens.len(), d / 2), &Device::Cpu).unwrap()
}

#[test]
fn rope_turns_pairs_by_the_angles_of_their_place() {
    for d in [8, 16, 24, 40, 128] {
        // (grid, this rank's first token, its tokens of a sample, the tile's first row, rows)
        for (grid, first, tokens, start, n) in [
            ([1, 1, 5], 0, 5, 4, 1),
            ([2, 3, 5], 0, 30, 0, 30),
            ([3, 5, 2], 7, 11, 9, 7), // a shard from the middle; the tile ends in the next sample
            ([2, 3, 7], 25, 17, 3, 33), // three samples' tokens
        ] {
            let at = Rows { start, tokens };
            let which: Vec<usize> = (start..start + n).map(|row| first + row % tokens).collect();
            let (turn, angles) = (Rope::new(grid, first, d, THETA), angles(grid, d, &which));
            Op {
                name: format!("rope of heads of {d}, grid {grid:?} from token {first}, row {start}"),
                inputs: vec![normal(1, (n, 3 * d))],
                params: vec![normal(2, 3 * d)],
                fused: &|t, x, p| rms_rope(t, &x[0], &p[0], EPS, &turn, at),
                plain: &|x, p| plain::rope(&plain::rms_norm(&x[0], &p[0], EPS)?, &angles, 3),
            }
            .check();
        }
    }
}

/// What rotary positions are for: the product of a query and a key depends on how far apart they are, not on where.
#[test]
fn products_depend_on_the_distance_alone() {
    let (grid, d) = ([5, 4, 6], 16);
    let token = |[t, h, w]: [usize; 3]| (t * grid[1] + h) * grid[2] + w;
    let ones = Param::leaf("ones", Tensor::ones(d, candle_core::DType::F64, &Device::Cpu).unwrap()).unwrap();
    let at = |x: &Tensor, place| {
        let rope = Rope::new(grid, token(place), d, THETA);
        rms_rope(&Tape::off(), x, &ones, EPS, &rope, Rows { start: 0, tokens: 1 }).unwrap()
    };
    let (q, k) = (normal(1, (1, d)), normal(2, (1, d)));
    let product = |a, b| (at(&q, a) * at(&k, b)).unwrap().sum_all().unwrap();
    close("moved by (1, 2, 3)", &product([3, 3, 5], [1, 2, 4]), &product([2, 1, 2], [0, 0, 1]), 1e-13);
    let (near, far) = (values(&product([2, 1, 2], [0, 0, 1])), values(&product([2, 1, 2], [1, 0, 1])));
    assert!((near[0] - far[0]).abs() > 1e-3);
}
