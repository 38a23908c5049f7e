//! How long a step and a run will take, from operations, messages and rates.
//!
//! Nothing is taken to overlap but decoding, which runs beside the step: a step takes as long as the longer of the two.

use super::{Plan, flops};
use crate::Result;
use crate::config::RunConfig;
use crate::data::{Decoding, FrameCache};
use crate::diffusion::{Guidance, QUANTILES, Sampler, resolve_shift};
use crate::model::ModelConfig;

/// What time is computed from.
#[derive(Clone, Copy, Debug)]
pub struct Rates {
    /// FLOP/s of a rank.
    pub flops: f64,
    /// Bytes a second that a rank sends.
    pub bandwidth: f64,
}

/// Bytes a second that checkpoints are assumed to be written with.
pub const DISK: f64 = 500e6;

/// Seconds of a step and of a whole run.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    /// A step's operations and messages.
    pub step: f64,
    /// To decode a step's clips, by all threads of all ranks; none where that is not known.
    pub decoding: Option<f64>,
    /// All steps.
    pub steps: f64,
    /// To encode the clips of a run on latents, before its first step; none where their number is not known.
    pub encoding: Option<f64>,
    /// To embed the texts of a run with text; none where their number is not known.
    pub embedding: Option<f64>,
    /// All held-out losses; none where the number of clips is not known, 0 where there are no such losses.
    pub heldout: Option<f64>,
    /// All samples during training.
    pub samples: f64,
    /// All checkpoints.
    pub checkpoints: f64,
}

impl Times {
    /// `heldout` is the number of held-out clips, if it is known.
    ///
    /// # Errors
    /// The sampler of `[sample]` has no such steps.
    pub fn new(
        config: &RunConfig,
        model: &ModelConfig,
        plan: &Plan,
        rates: Rates,
        decoding: Option<&Decoding>,
        heldout: Option<usize>,
    ) -> Result<Self> {
        let (train, parallel) = (&config.train, &config.parallel);
        let ranks = parallel.ranks as f64;
        let messages: u64 = plan.work.sent.iter().map(|sent| sent.1).sum();
        let step = plan.work.flop.iter().sum::<f64>() / ranks / rates.flops + messages as f64 / rates.bandwidth;
        let decoded = decoding.map_or(train.steps, |decoding| steps_that_decode(config, plan, decoding));
        let decoding = decoding.and_then(|decoding| Some(decoding_of_a_step(config, plan, decoding.seconds?)));
        let forward = flops::forward(model, plan.tokens);

        let every = |every: u64| train.steps.checked_div(every).unwrap_or(0);
        let and_last = |every: u64| u64::from(every == 0 || !train.steps.is_multiple_of(every));
        let losses = every(train.heldout_every) + and_last(train.heldout_every);
        let heldout = match (&config.data.heldout, train.heldout_every) {
            (None, _) | (_, 0) => Some(0.0),
            _ => heldout.map(|clips| (losses as usize * clips * QUANTILES) as f64 * forward / ranks / rates.flops),
        };
        let clips = every(train.sample_every) as f64 * config.sampling().count as f64;
        let sequence = (parallel.ranks / parallel.data) as f64;
        let samples = match train.sample_every {
            0 => 0.0,
            _ => clips * passes(config, plan.tokens)? * forward / sequence / rates.flops,
        };
        let saved = every(train.checkpoint_every) + and_last(train.checkpoint_every);
        let bytes = plan.trained as f64 * if train.ema > 0.0 { 16.0 } else { 12.0 };
        Ok(Self {
            step,
            decoding,
            encoding: match &plan.latents {
                None => Some(0.0),
                Some(latents) => latents.flops().map(|flops| flops / ranks / rates.flops),
            },
            embedding: match &plan.texts {
                None => Some(0.0),
                Some(texts) => texts.texts.map(|count| count as f64 * texts.flops / ranks / rates.flops),
            },
            steps: train.steps as f64 * step + decoded as f64 * (decoding.unwrap_or(0.0) - step).max(0.0),
            heldout,
            samples,
            checkpoints: saved as f64 * bytes / DISK,
        })
    }

    /// All that is known of.
    pub fn run(&self) -> f64 {
        let before = self.encoding.unwrap_or(0.0) + self.embedding.unwrap_or(0.0);
        before + self.steps + self.heldout.unwrap_or(0.0) + self.samples + self.checkpoints
    }

    /// Whether training would wait for clips.
    pub fn waits(&self) -> bool {
        self.decoding.is_some_and(|decoding| decoding > self.step)
    }
}

/// Seconds for all ranks' threads to decode a step's clips, of which one thread decodes one in `seconds`.
fn decoding_of_a_step(config: &RunConfig, plan: &Plan, seconds: f64) -> f64 {
    let clips = (config.train.batch * config.train.accumulate * config.parallel.ranks) as f64;
    // A rank decodes the frames that it needs; an image as a whole.
    let [part, whole] = plan.frames.map(|bytes| bytes as f64);
    let frames = if config.data.frames > 1 { part / whole } else { 1.0 };
    let threads =
        (config.parallel.ranks * Decoding::threads(config.data.prefetch, config.train.batch)).min(Decoding::cores());
    clips * frames * seconds / threads as f64
}

/// Steps whose clips are decoded: all, or where decoded clips are kept as many as it takes to have each once.
fn steps_that_decode(config: &RunConfig, plan: &Plan, decoding: &Decoding) -> u64 {
    if FrameCache::bytes(&config.data.clips(), decoding.clips, plan.frames[0]) == 0 {
        return config.train.steps;
    }
    // A data rank keeps what it has had, and in time has all of them.
    let batch = config.train.batch * config.train.accumulate;
    let all = FrameCache::parts(&config.data.clips(), decoding.clips);
    (all.div_ceil(batch) as u64).min(config.train.steps)
}

/// Passes of the network for one sample.
fn passes(config: &RunConfig, tokens: usize) -> Result<f64> {
    let sample = config.sampling();
    // Where the shift is left to a pipeline, the caller has looked it up.
    let shift = resolve_shift(config.sample.shift.unwrap_or(1.0), config.diffusion.shift_base_tokens, tokens)?;
    let sigmas = sample.sampler.sigmas(sample.steps, shift)?;
    let guidance = Guidance::new(sample.guidance, config.sample.guidance_interval)?;
    let guided = sigmas[..sample.steps].iter().filter(|&&sigma| guidance.active(sigma)).count();
    let calls = Sampler::new(sample.sampler, sigmas)?.calls();
    Ok(calls as f64 * (1.0 + guided as f64 / sample.steps as f64))
}

/// A time in its two largest units: 0.35 s, 41 s, 12 min 5 s, 2 h 12 min, 3 d 4 h.
pub fn words(seconds: f64) -> String {
    if seconds < 9.995 {
        return format!("{seconds:.2} s");
    }
    if seconds >= 1e13 {
        return format!("{:.0} years", seconds / 86400.0 / 365.25);
    }
    let s = seconds.round() as u64;
    match (s / 86400, s / 3600 % 24, s / 60 % 60, s % 60) {
        (0, 0, 0, s) => format!("{s} s"),
        (0, 0, m, s) => format!("{m} min {s} s"),
        (0, h, m, _) => format!("{h} h {m} min"),
        (d, h, _, _) => format!("{d} d {h} h"),
    }
}

#[cfg(test)]
mod tests {
    use super::words;

    #[test]
    fn duration_shows_its_two_largest_units() {
        let all = [0.354, 9.994, 59.6, 61.0, 725.2, 7920.0, 273_600.0, 3.2e13].map(words);
        assert_eq!(
            all,
            ["0.35 s", "9.99 s", "1 min 0 s", "1 min 1 s", "12 min 5 s", "2 h 12 min", "3 d 4 h", "1014019 years"]
        );
    }
}
