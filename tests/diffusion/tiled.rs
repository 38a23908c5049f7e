//! The samplers tile by tile against their plain form: the same bits, in any order of tiles.

use super::flows::{MIXTURE, network, spaced};
use super::values;
use candle_core::{DType, Device, Tensor};
use longreel::Result;
use longreel::diffusion::SamplerKind::{self, Dpmpp, Euler, FlowEuler, Heun, Unipc, WanUnipc};
use longreel::diffusion::{Make, Sampler, Take, Velocity, noise_rows, sample_key};
use std::ops::Range;

const ROWS: usize = 11;
const WIDTH: usize = 3;

/// Normal numbers, [11, 3].
fn noise(dtype: DType) -> Tensor {
    let mut rows = vec![0.0; ROWS * WIDTH];
    noise_rows(sample_key(5, 0), 0..ROWS, WIDTH, &mut rows);
    Tensor::from_vec(rows, (ROWS, WIDTH), &Device::Cpu).unwrap().to_dtype(dtype).unwrap()
}

/// A velocity in which each number sees all others, as in attention: the mixture's, with the state's mean added.
fn velocity(x: &Tensor, sigma: f64) -> Result<Tensor> {
    let v = network(|x, s| MIXTURE.velocity(x, s))(x, sigma)?;
    let mean = x.mean_all()?.affine(sigma, 0.1)?;
    Ok(v.broadcast_add(&mean)?)
}

/// [`velocity`] given in tiles: reads the whole state, as a network does, and gives `tiles` in their order.
struct Tiles {
    tiles: Vec<Range<usize>>,
    calls: usize,
}

impl Velocity for Tiles {
    fn tiles(&mut self, state: Make, sigma: f64, take: Take) -> Result<()> {
        self.calls += 1;
        // A copy: a view would move with the state.
        let parts = [0..4, 4..5, 5..ROWS].iter().map(|rows| Ok(state(rows)?.copy()?)).collect::<Result<Vec<_>>>()?;
        let v = velocity(&Tensor::cat(&parts, 0)?, sigma)?;
        for rows in &self.tiles {
            let here = state(rows)?;
            take(rows.clone(), &here, v.narrow(0, rows.start, rows.len())?)?;
        }
        Ok(())
    }
}

#[test]
fn tiles_give_the_bits_of_the_whole() {
    for kind in [Euler, Heun, Dpmpp, Unipc] {
        for (end, dtype) in [(0.0, DType::F32), (0.0, DType::F64), (0.2, DType::F32)] {
            let sampler = Sampler::new(kind, spaced(1.0, end, 7)).unwrap();
            let whole = values(&sampler.run(noise(dtype), velocity).unwrap());
            let in_one = std::iter::once(0..ROWS).collect();
            for tiles in [in_one, vec![0..5, 5..10, 10..11], vec![7..11, 0..3, 3..7]] {
                let mut network = Tiles { tiles, calls: 0 };
                let tiled = sampler.run_in_tiles(noise(dtype), &mut network).unwrap();
                assert_eq!((tiled.dims(), tiled.dtype()), (&[ROWS, WIDTH][..], dtype));
                assert_eq!(values(&tiled), whole, "{kind:?} to {end} in {dtype:?}, tiles {:?}", network.tiles);
                assert_eq!(network.calls, sampler.calls());
            }
        }
    }
}

/// A network that is wrong.
struct Wrong(fn(&Tensor) -> Result<Tensor>);

impl Velocity for Wrong {
    fn tiles(&mut self, state: Make, _sigma: f64, take: Take) -> Result<()> {
        let here = state(&(0..4))?;
        take(0..4, &here, (self.0)(&here)?)
    }
}

#[test]
fn velocities_that_do_not_fit_are_refused() {
    let kinds: [SamplerKind; 6] = [Euler, Heun, Dpmpp, Unipc, WanUnipc, FlowEuler];
    for sampler in kinds.map(|kind| Sampler::new(kind, vec![1.0, 0.5, 0.0]).unwrap()) {
        let run = |wrong| sampler.run_in_tiles(noise(DType::F32), &mut Wrong(wrong));
        assert!(refusal!(Shape, run(|x| Ok(x.narrow(0, 0, 3)?))).contains("sigma = 1, rows 0..4"));
        assert!(refusal!(Shape, run(|x| Ok(x.to_dtype(DType::F64)?))).contains("F64"));
        assert_eq!(refusal!(Environment, run(|_| longreel::bail!(Environment, "out of memory"))), "out of memory");
    }
}
