//! Makes what all tokens of a sample share (the time embedding, its projection to modulations, text tokens and the
//! class) from a [`Conditioning`].
//!
//! The results are leaves ([`Param`]) that collect gradients from every tile and block; [`Conditioner::backward`] takes
//! the sums through the small network once. Each rank does so with its own tokens' share: the map is linear in the
//! gradient, so the sum of parameter gradients over ranks comes out right.

use candle_core::Tensor;
use std::sync::Arc;

use super::text::{TextRows, TextTokens};
use super::{Layers, ModelConfig, RowGroups};
use crate::ops::{Linear, Param, Rows, Tape, add, clear, silu};
use crate::{Result, bail};

/// What the conditions of B samples are made from.
#[derive(Clone, Debug)]
pub struct Conditioning {
    /// The network's time, 1000 sigma, of each sample; of tokens in groups ([`TimeGroups`](super::TimeGroups)), of each
    /// group of each sample.
    pub timesteps: Vec<f64>,
    /// The text of each sample, for models with text.
    pub text: Option<Vec<TextTokens>>,
    /// The class of each sample, for models with classes; `num_classes` is the null class.
    pub labels: Option<Vec<usize>>,
}

/// The conditions of B samples.
pub struct Condition {
    conditioning: Conditioning,
    /// Which of a sample's times each row has, where there are several; then there are as many times as B times the
    /// groups of a sample.
    pub groups: Option<Arc<RowGroups>>,
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
    /// Whether something of it changes in training.
    trains: bool,
}

impl Conditioner {
    /// Views the weights in a unit. This network computes in full precision, as Wan's does.
    pub fn new(layers: &Layers, config: &ModelConfig) -> Result<Self> {
        let linear = |name: &str| layers.linear(&format!("condition_embedder.{name}"), false);
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
                _ => Some(layers.param("condition_embedder.class_embedder.embedding_table.weight")?),
            },
            freq_dim: config.freq_dim,
            width: config.width(),
            trains: layers.trains(),
        })
    }

    /// Makes the conditions of samples from their `conditioning`.
    pub fn forward(&self, conditioning: &Conditioning) -> Result<Condition> {
        self.forward_in_groups(conditioning, None)
    }

    /// As [`forward`](Self::forward), of tokens whose times are in groups.
    pub fn forward_in_groups(&self, conditioning: &Conditioning, groups: Option<Arc<RowGroups>>) -> Result<Condition> {
        let (given, each) = (conditioning.timesteps.len(), groups.as_ref().map_or(1, |groups| groups.count));
        if !given.is_multiple_of(each) {
            bail!(Shape, "{given} times for samples of {each} groups of tokens; one for each group is wanted")
        }
        let b = given / each;
        let (sinusoid, class) = (self.sinusoid(&conditioning.timesteps)?, self.class_rows(conditioning, each)?);
        let (time, modulation) = self.time(&Tape::off(), &sinusoid, class.as_ref())?;
        let text = match (&self.text, &conditioning.text) {
            (None, None) => None,
            (Some(_), Some(texts)) => {
                if texts.len() != b {
                    bail!(Shape, "{} texts for {b} samples; one each is wanted", texts.len())
                }
                let (rows, given) = TextRows::gather(texts, self.text_dim(), &time)?;
                let embedded = self.leaf("text", self.text_rows(&Tape::off(), &given)?)?;
                Some(ConditionText { given, embedded, rows: Arc::new(rows) })
            }
            (Some(_), None) => {
                bail!(Shape, "the model has text (text_dim {}), but no text embeddings are given", self.text_dim())
            }
            (None, Some(_)) => bail!(Shape, "text embeddings are given, but the model has no text (text_dim 0)"),
        };
        Ok(Condition {
            conditioning: conditioning.clone(),
            time: self.leaf("time", time)?,
            modulation: self.leaf("modulation", modulation.reshape((given, 6, self.width))?)?,
            groups,
            text,
        })
    }

    /// Adds this network's parameter gradients, given the gradients that `condition` has collected.
    pub fn backward(&self, condition: &Condition) -> Result<()> {
        let conditioning = &condition.conditioning;
        let each = condition.groups.as_ref().map_or(1, |groups| groups.count);
        let (sinusoid, class) = (self.sinusoid(&conditioning.timesteps)?, self.class_rows(conditioning, each)?);
        let tape = Tape::recording();
        let (time, modulation) = self.time(&tape, &sinusoid, class.as_ref())?;
        let d_modulation = condition.modulation.grad()?.reshape(modulation.shape())?;
        let outputs = [(&time, condition.time.grad()?), (&modulation, &d_modulation)];
        let inputs: Vec<&Tensor> = std::iter::once(&sinusoid).chain(&class).collect();
        let gradients = tape.backward(&outputs, &inputs)?;
        if let (Some(table), Some(labels)) = (&self.classes, &conditioning.labels) {
            let of_groups = labels.iter().flat_map(|label| std::iter::repeat_n(label, each));
            for (sample, &label) in of_groups.enumerate() {
                table.get(label)?.accumulate(&gradients[1].get(sample)?)?;
            }
        }
        if let Some(text) = &condition.text {
            let tape = Tape::recording();
            let output = self.text_rows(&tape, &text.given)?;
            tape.backward(&[(&output, text.embedded.grad()?)], &[&text.given])?;
        }
        Ok(())
    }

    /// Sets the gradients that `condition` has collected to zero, so that it can serve again.
    pub fn zero_grad(condition: &Condition) -> Result<()> {
        let text = condition.text.as_ref().map(|text| &text.embedded);
        for leaf in [Some(&condition.time), Some(&condition.modulation), text].into_iter().flatten() {
            leaf.grad.iter().try_for_each(clear)?;
        }
        Ok(())
    }

    /// A leaf; without a gradient where nothing here would take it.
    fn leaf(&self, name: &str, value: Tensor) -> Result<Param> {
        leaf(name, value, !self.trains)
    }

    fn text_dim(&self) -> usize {
        self.text.as_ref().map_or(0, |(first, _)| first.weight.value.dims()[1])
    }

    /// (time embedding `[B, D]`, modulations `[B, 6 D]`) from sinusoids `[B, freq_dim]` and class rows `[B, D]`.
    fn time(&self, tape: &Tape, sinusoid: &Tensor, class: Option<&Tensor>) -> Result<(Tensor, Tensor)> {
        let layers = [&self.time_1, &self.time_2, &self.time_proj];
        let [first, second, projection] = layers.map(|layer| layer.at(Rows { start: 0, tokens: 1 }, false));
        let mut time = second.forward(tape, &silu(tape, &first.forward(tape, sinusoid)?)?)?; // [B, D]
        if let Some(class) = class {
            time = add(tape, &time, class)?;
        }
        let modulation = projection.forward(tape, &silu(tape, &time)?)?; // [B, 6 D]
        Ok((time, modulation))
    }

    /// Text rows `[rows, text_dim]` to `[rows, D]`.
    fn text_rows(&self, tape: &Tape, rows: &Tensor) -> Result<Tensor> {
        let tokens = rows.dims()[0];
        let Some((first, second)) = &self.text else { bail!(Shape, "the model has no text") };
        let of = Rows { start: 0, tokens };
        Ok(second.at(of, false).forward(tape, &first.at(of, false).gelu(tape, rows)?)?)
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

    /// The class embedding of each sample `[B, D]`, or of each of its groups of tokens, `each` of them.
    fn class_rows(&self, conditioning: &Conditioning, each: usize) -> Result<Option<Tensor>> {
        match (&self.classes, &conditioning.labels) {
            (None, None) => Ok(None),
            (Some(table), Some(labels)) => {
                let (given, wanted) = (labels.len(), conditioning.timesteps.len() / each);
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
                let of_groups = labels.iter().flat_map(|label| std::iter::repeat_n(label, each));
                let rows = of_groups.map(|&label| table.value.get(label)).collect::<candle_core::Result<Vec<_>>>()?;
                Ok(Some(Tensor::stack(&rows, 0)?))
            }
            (Some(_), None) => bail!(Shape, "the model has classes, but no class is given"),
            (None, Some(_)) => bail!(Shape, "a class is given, but the model has no classes"),
        }
    }
}

/// A leaf with a gradient of zeros or, `frozen`, without one.
pub(super) fn leaf(name: &str, value: Tensor, frozen: bool) -> Result<Param> {
    let param = Param::leaf(name, value)?;
    Ok(if frozen { Param { grad: None, ..param } } else { param })
}
