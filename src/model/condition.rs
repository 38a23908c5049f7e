//! Makes what all tokens of a sample share (the time embedding, its projection to modulations, text tokens and the
//! class) from a [`Conditioning`].
//!
//! The results are leaves ([`Param`]) that collect gradients from every tile and block; [`Conditioner::backward`] takes
//! the sums through the small network once. Each rank does so with its own tokens' share: the map is linear in the
//! gradient, so the sum of parameter gradients over ranks comes out right.

use candle_core::Tensor;
use std::sync::Arc;

use super::text::{TextRows, TextTokens};
use super::{ModelConfig, Unit};
use crate::ops::{Linear, Param, Tape, add, clear, silu};
use crate::{Result, bail};

/// What the conditions of B samples are made from.
#[derive(Clone, Debug)]
pub struct Conditioning {
    /// The network's time, 1000 sigma, of each sample.
    pub timesteps: Vec<f64>,
    /// The text of each sample, for models with text.
    pub text: Option<Vec<TextTokens>>,
    /// The class of each sample, for models with classes; `num_classes` is the null class.
    pub labels: Option<Vec<usize>>,
}

/// The conditions of B samples.
pub struct Condition {
    conditioning: Conditioning,
    /// The time embedding `[B, D]`, for the head.
    pub time: Param,
    /// Its projection to modulations `[B, 6, D]`, for the blocks.
    pub modulation: Param,
    /// The samples' text.
    pub text: Option<ConditionText>,
}

/// The text of B samples in the model's width.
pub struct ConditionText {
    /// `[rows, text_dim]`
    given: Tensor,
    /// `[rows, D]`
    pub embedded: Param,
    /// Whose rows they are.
    pub rows: Arc<TextRows>,
}

/// `condition_embedder`: the small network that makes conditions.
pub struct Conditioner {
    time_1: Linear,
    time_2: Linear,
    time_proj: Linear,
    text: Option<(Linear, Linear)>,
    classes: Option<Param>,
    freq_dim: usize,
    width: usize,
}

impl Conditioner {
    /// Views the weights in `unit`. This network computes in full precision, as Wan's does.
    pub fn new(unit: &Unit, config: &ModelConfig) -> Result<Self> {
        let linear = |name: &str| unit.linear(&format!("condition_embedder.{name}"), false);
        Ok(Self {
            time_1: linear("time_embedder.linear_1")?,
            time_2: linear("time_embedder.linear_2")?,
            time_proj: linear("time_proj")?,
            text: match config.text_dim {
                0 => None,
                _ => Some((linear("text_embedder.linear_1")?, linear("text_embedder.linear_2")?)),
            },
            classes: match config.num_classes {
                0 => None,
                _ => Some(unit.param("condition_embedder.class_embedder.embedding_table.weight")?),
            },
            freq_dim: config.freq_dim,
            width: config.width(),
        })
    }

    /// Makes the conditions of samples from their `conditioning`.
    pub fn forward(&self, conditioning: &Conditioning) -> Result<Condition> {
        let b = conditioning.timesteps.len();
        let (sinusoid, class) = (self.sinusoid(&conditioning.timesteps)?, self.class_rows(conditioning)?);
        let (time, modulation) = self.time(&Tape::off(), &sinusoid, class.as_ref())?;
        let text = match (&self.text, &conditioning.text) {
            (None, None) => None,
            (Some(_), Some(texts)) => {
                if texts.len() != b {
                    bail!(Shape, "{} texts for {b} samples; one each is wanted", texts.len())
                }
                let (rows, given) = TextRows::gather(texts, self.text_dim(), &time)?;
                let embedded = Param::leaf("text", self.text_rows(&Tape::off(), &given)?)?;
                Some(ConditionText { given, embedded, rows: Arc::new(rows) })
            }
            (Some(_), None) => {
                bail!(Shape, "the model has text (text_dim {}), but no text embeddings are given", self.text_dim())
            }
            (None, Some(_)) => bail!(Shape, "text embeddings are given, but the model has no text (text_dim 0)"),
        };
        Ok(Condition {
            conditioning: conditioning.clone(),
            time: Param::leaf("time", time)?,
            modulation: Param::leaf("modulation", modulation.reshape((b, 6, self.width))?)?,
            text,
        })
    }

    /// Adds this network's parameter gradients, given the gradients that `condition` has collected.
    pub fn backward(&self, condition: &Condition) -> Result<()> {
        let conditioning = &condition.conditioning;
        let (sinusoid, class) = (self.sinusoid(&conditioning.timesteps)?, self.class_rows(conditioning)?);
        let tape = Tape::recording();
        let (time, modulation) = self.time(&tape, &sinusoid, class.as_ref())?;
        let d_modulation = condition.modulation.grad.reshape(modulation.shape())?;
        let outputs = [(&time, &condition.time.grad), (&modulation, &d_modulation)];
        let inputs: Vec<&Tensor> = std::iter::once(&sinusoid).chain(&class).collect();
        let gradients = tape.backward(&outputs, &inputs)?;
        if let (Some(table), Some(labels)) = (&self.classes, &conditioning.labels) {
            for (sample, &label) in labels.iter().enumerate() {
                let row =
                    Param { name: table.name.clone(), value: table.value.get(label)?, grad: table.grad.get(label)? };
                row.accumulate(&gradients[1].get(sample)?)?;
            }
        }
        if let Some(text) = &condition.text {
            let tape = Tape::recording();
            let output = self.text_rows(&tape, &text.given)?;
            tape.backward(&[(&output, &text.embedded.grad)], &[&text.given])?;
        }
        Ok(())
    }

    /// Sets the gradients that `condition` has collected to zero, so that it can serve again.
    pub fn zero_grad(condition: &Condition) -> Result<()> {
        let text = condition.text.as_ref().map(|text| &text.embedded);
        for leaf in [Some(&condition.time), Some(&condition.modulation), text].into_iter().flatten() {
            clear(&leaf.grad)?;
        }
        Ok(())
    }

    fn text_dim(&self) -> usize {
        self.text.as_ref().map_or(0, |(first, _)| first.weight.value.dims()[1])
    }

    /// (time embedding `[B, D]`, modulations `[B, 6 D]`) from sinusoids `[B, freq_dim]` and class rows `[B, D]`.
    fn time(&self, tape: &Tape, sinusoid: &Tensor, class: Option<&Tensor>) -> Result<(Tensor, Tensor)> {
        let mut time = self.time_2.forward(tape, &silu(tape, &self.time_1.forward(tape, sinusoid)?)?)?; // [B, D]
        if let Some(class) = class {
            time = add(tape, &time, class)?;
        }
        let modulation = self.time_proj.forward(tape, &silu(tape, &time)?)?; // [B, 6 D]
        Ok((time, modulation))
    }

    /// Text rows `[rows, text_dim]` to `[rows, D]`.
    fn text_rows(&self, tape: &Tape, rows: &Tensor) -> Result<Tensor> {
        let Some((first, second)) = &self.text else { bail!(Shape, "the model has no text") };
        Ok(second.forward(tape, &first.gelu(tape, rows)?)?)
    }

    /// [cos | sin] of t exp(-ln(10000) i / half), computed in f32 like diffusers' `get_timestep_embedding`.
    fn sinusoid(&self, timesteps: &[f64]) -> Result<Tensor> {
        let half = self.freq_dim / 2;
        let frequency = |i: usize| (-(10000f64.ln() as f32) * i as f32 / half as f32).exp();
        let mut values = Vec::with_capacity(timesteps.len() * self.freq_dim);
        for &t in timesteps {
            let angles: Vec<f64> = (0..half).map(|i| f64::from(t as f32 * frequency(i))).collect();
            values.extend(angles.iter().map(|a| a.cos()));
            values.extend(angles.iter().map(|a| a.sin()));
        }
        let weight = &self.time_1.weight.value;
        Ok(Tensor::from_vec(values, (timesteps.len(), self.freq_dim), weight.device())?.to_dtype(weight.dtype())?)
    }

    /// The class embedding of each sample, `[B, D]`.
    fn class_rows(&self, conditioning: &Conditioning) -> Result<Option<Tensor>> {
        match (&self.classes, &conditioning.labels) {
            (None, None) => Ok(None),
            (Some(table), Some(labels)) => {
                let (given, wanted) = (labels.len(), conditioning.timesteps.len());
                if given != wanted {
                    bail!(Shape, "{given} classes for {wanted} samples; one each is wanted")
                }
                let classes = table.value.dims()[0];
                if let Some(label) = labels.iter().find(|&&label| label >= classes) {
                    bail!(
                        Shape,
                        "class {label}: the model has classes 0 to {} (the last is the null class)",
                        classes - 1
                    )
                }
                let rows =
                    labels.iter().map(|&label| table.value.get(label)).collect::<candle_core::Result<Vec<_>>>()?;
                Ok(Some(Tensor::stack(&rows, 0)?))
            }
            (Some(_), None) => bail!(Shape, "the model has classes, but no class is given"),
            (None, Some(_)) => bail!(Shape, "a class is given, but the model has no classes"),
        }
    }
}
