//! Tests text and its pads: one key that counts m times gives what m tokens of zeros give, in the output and in every
//! gradient, on 1, 2 and 3 ranks and for samples of different lengths.

use super::{normal, random, tiny};
use candle_core::{DType, Device, Tensor};
use longreel::Result;
use longreel::engine::{Engine, Objective, Source};
use longreel::model::{Conditioning, TextTokens};
use longreel::parallel::{Reduce, Sequence, run_threads};
use std::ops::Range;

const GRID: [usize; 3] = [2, 2, 3];
/// Tokens of Wan's text.
const LENGTH: usize = 512;

/// A rank's random patches of some samples, and the loss sum(y^2).
struct Squares {
    tokens: Range<usize>,
    width: usize,
}

impl Source for Squares {
    fn input(&self, rows: Range<usize>) -> Result<Tensor> {
        let (count, tokens) = (rows.len(), GRID.iter().product::<usize>());
        let mut values = vec![];
        for row in rows {
            let (sample, token) = (row / self.tokens.len(), self.tokens.start + row % self.tokens.len());
            let all = normal(900 + sample as u64, tokens * self.width);
            values.extend_from_slice(&all[token * self.width..][..self.width]);
        }
        Ok(Tensor::from_vec(values, (count, self.width), &Device::Cpu)?.to_dtype(DType::F64)?)
    }
}

impl Objective for Squares {
    fn loss(&self, _: Range<usize>, y: &Tensor) -> Result<(f64, Tensor)> {
        Ok((y.sqr()?.sum_all()?.to_scalar()?, (y * 2.0)?))
    }
}

/// `n` real tokens and pads up to [`LENGTH`], told or as tokens of zeros.
fn text(n: usize, explicit: bool) -> Result<TextTokens> {
    let features = tiny().text_dim;
    let tokens = Tensor::from_vec(normal(500 + n as u64, n * features), (n, features), &Device::Cpu)?;
    let tokens = tokens.to_dtype(DType::F64)?;
    if !explicit {
        return Ok(TextTokens::padded_to(tokens, LENGTH));
    }
    let pads = Tensor::zeros((LENGTH - n, features), DType::F64, &Device::Cpu)?;
    Ok(TextTokens { tokens: Tensor::cat(&[tokens, pads], 0)?, pads: 0 })
}

/// The loss, and every unit's gradient, summed over ranks.
fn run(ranks: usize, lengths: &[usize], explicit: bool) -> (f64, Vec<Vec<f64>>) {
    let config = tiny();
    let mut results = run_threads(ranks, 1, |comm| {
        let model = random(&config, DType::F64);
        let sequence = Sequence::new(comm.clone(), config.num_attention_heads, 0)?;
        let engine = Engine::new(&model, &sequence, GRID, lengths.len(), 5)?;
        let conditioning = Conditioning {
            timesteps: (0..lengths.len()).map(|i| 300.0 + 100.0 * i as f64).collect(),
            text: Some(lengths.iter().map(|&n| text(n, explicit)).collect::<Result<_>>()?),
            labels: Some(vec![1; lengths.len()]),
        };
        let squares = Squares { tokens: engine.local_tokens(), width: config.patch_in() };
        let loss = Tensor::new(&[engine.loss_and_gradients(&conditioning, &squares)?], &Device::Cpu)?;
        comm.all_reduce(&loss, Reduce::Sum)?;
        let gradients = model.units.iter().map(|unit| {
            comm.all_reduce(unit.grad.as_ref().unwrap(), Reduce::Sum)?;
            Ok(unit.grad.as_ref().unwrap().to_vec1::<f64>()?)
        });
        Ok((loss.to_vec1::<f64>()?[0], gradients.collect::<Result<_>>()?))
    })
    .unwrap();
    results.swap_remove(ranks - 1)
}

#[test]
fn pads_are_one_key_that_counts_so_often() {
    for lengths in [&[1][..], &[37], &[511], &[512], &[0], &[37, 1, 512], &[512, 511]] {
        let (want_loss, want) = run(1, lengths, true);
        for ranks in 1..=3 {
            let (loss, gradients) = run(ranks, lengths, false);
            assert!((loss - want_loss).abs() <= 1e-13 * want_loss, "{lengths:?}, P {ranks}: {loss}, not {want_loss}");
            for (got, want) in gradients.iter().zip(&want) {
                let largest = want.iter().fold(0f64, |a, w| a.max(w.abs()));
                let off = got.iter().zip(want).map(|(g, w)| (g - w).abs()).fold(0.0, f64::max) / largest;
                assert!(off <= 2e-12, "{lengths:?}, P {ranks}: a gradient is off by {off:.1e}");
            }
        }
    }
}

/// Texts without their pads are another condition: the test above can fail.
#[test]
fn pads_take_part() {
    let cut = |n| Ok(TextTokens { pads: 0, ..text(n, false)? });
    let model = random(&tiny(), DType::F64);
    let loss = |text: Result<TextTokens>| {
        let sequence = Sequence::new(std::sync::Arc::new(longreel::parallel::Single), 3, 0).unwrap();
        let engine = Engine::new(&model, &sequence, GRID, 1, 0).unwrap();
        let conditioning =
            Conditioning { timesteps: vec![300.0], text: Some(vec![text.unwrap()]), labels: Some(vec![1]) };
        let squares = Squares { tokens: engine.local_tokens(), width: tiny().patch_in() };
        engine.loss_and_gradients(&conditioning, &squares).unwrap()
    };
    let (padded, cut) = (loss(text(37, false)), loss(cut(37)));
    assert!((padded - cut).abs() > 1e-3 * padded, "{padded} {cut}");
}

/// Rows of zeros at the end are pads; others are not.
#[test]
fn zeros_at_the_end_are_pads() {
    let rows = |rows: &[[f32; 2]]| {
        let tokens = Tensor::from_vec(rows.concat(), (rows.len(), 2), &Device::Cpu).unwrap();
        let text = TextTokens::of_padded(&tokens).unwrap();
        (text.tokens.to_vec2::<f32>().unwrap(), text.pads)
    };
    assert_eq!(rows(&[[1.0, 0.0], [0.0, 0.0], [0.0, 2.0]]).1, 0);
    assert_eq!(rows(&[[0.0, 0.0], [0.0, -2.0], [0.0, 0.0], [-0.0, 0.0]]), (vec![vec![0.0, 0.0], vec![0.0, -2.0]], 2));
    assert_eq!(rows(&[[0.0, 0.0]; 3]), (vec![], 3));
}
