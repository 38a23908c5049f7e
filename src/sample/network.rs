//! Asks the network for the guided velocity of a batch of clips, as a sampler wants it: with each clip's condition, and
//! with guidance also with the null one.

use candle_core::{DType, Device, Tensor};
use std::ops::Range;

use super::{ClipSampler, ClipSpec, conditioning};
use crate::Result;
use crate::diffusion::{Condition, Make, State, Take, Velocity, channel_first};
use crate::engine::{Engine, Source};
use crate::ops::read;

/// A network that says when it has been asked.
pub(super) struct Reporting<'a, 'n> {
    pub network: &'a mut Network<'n>,
    pub report: &'a mut dyn FnMut(),
}

impl Velocity for Reporting<'_, '_> {
    fn tiles(&mut self, state: Make, sigma: f64, take: Take) -> Result<()> {
        self.network.tiles(state, sigma, take)?;
        (self.report)();
        Ok(())
    }
}

/// The guided velocity of a network on a batch of clips, as a sampler asks for it.
pub(super) struct Network<'a> {
    pub of: &'a ClipSampler<'a>,
    /// On the clips once.
    pub single: Engine<'a>,
    /// On the clips twice, with their conditions and with the null one.
    pub both: Option<Engine<'a>>,
    pub clips: &'a [ClipSpec],
    /// Rows of the state.
    pub rows: usize,
    /// With guidance: the velocities of the conditions asked for, until those of the null condition are there.
    pub given: Option<State>,
}

/// Takes rows of the state: which, the state there, and the velocity under a condition.
type TakeUnder<'a> = &'a mut dyn FnMut(Condition, Range<usize>, &Tensor, Tensor) -> Result<()>;

impl Network<'_> {
    /// One pass of the network under each of `conditions`, its predictions turned to velocities.
    fn pass(&self, conditions: &[Condition], state: Make, sigma: f64, take: TakeUnder) -> Result<()> {
        let engine = if conditions.len() > 1 { self.both.as_ref().unwrap_or(&self.single) } else { &self.single };
        let (mut labels, mut texts) = (vec![], vec![]);
        for (condition, clip) in conditions.iter().flat_map(|condition| self.clips.iter().map(move |c| (condition, c)))
        {
            let given = *condition == Condition::Given;
            labels.push(clip.label.filter(|_| given));
            if let Some(prompts) = self.of.prompts {
                texts.push(if given { prompts.texts[clip.prompt].clone() } else { prompts.negative.clone() });
            }
        }
        let times = vec![self.of.request.sampler.timestep(sigma); labels.len()];
        let conditioning = conditioning(self.of.model, &times, &labels, self.of.prompts.map(|_| texts));
        engine.predict(
            &conditioning,
            &Input { state, rows: self.rows, channels: self.of.model.config.in_channels },
            |rows, output| {
                for (pass, part, first) in by_pass(&rows, self.rows) {
                    let x = state(&part)?;
                    let output = output.narrow(0, first, part.len())?;
                    let v = self.of.objective.velocity(&output.reshape(x.shape())?, &x, sigma)?;
                    take(conditions[pass], part, &x, v)?;
                }
                Ok(())
            },
        )
    }
}

impl Velocity for Network<'_> {
    fn tiles(&mut self, state: Make, sigma: f64, take: Take) -> Result<()> {
        let guidance = &self.of.request.guidance;
        if !guidance.active(sigma) {
            return self.pass(&[Condition::Given], state, sigma, &mut |_, rows, x, v| take(rows, x, v));
        }
        let given = match self.given.take() {
            Some(given) => given,
            None => {
                let shape = (self.rows, self.of.model.config.patch_in());
                State::new(Tensor::zeros(shape, DType::F32, &Device::Cpu)?)?
            }
        };
        let mut guide = |condition, rows: Range<usize>, x: &Tensor, v: Tensor| match condition {
            Condition::Given => given.set(&rows, &v),
            Condition::Null => {
                let v = guidance.guided(&given.rows(&rows)?, &v)?;
                take(rows, x, v)
            }
        };
        let conditions = [Condition::Given, Condition::Null]; // in this order: the second uses what the first has left
        let at_once = if self.both.is_some() { conditions.len() } else { 1 };
        conditions.chunks(at_once).try_for_each(|conditions| self.pass(conditions, state, sigma, &mut guide))?;
        self.given = Some(given);
        Ok(())
    }
}

/// A tile's `rows` of a batch in which the state's rows come several times, once a pass: the pass, the rows of the
/// state, and where they begin in the tile.
fn by_pass(rows: &Range<usize>, state: usize) -> impl Iterator<Item = (usize, Range<usize>, usize)> + use<> {
    let (start, end) = (rows.start, rows.end);
    let passes = start / state..end.div_ceil(state);
    passes.map(move |pass| {
        let (first, last) = (start.max(pass * state), end.min((pass + 1) * state));
        (pass, first - pass * state..last - pass * state, first - start)
    })
}

/// A sampler's state as the network's input, for each pass again.
struct Input<'a> {
    state: Make<'a>,
    /// Rows of the state.
    rows: usize,
    /// Channels of a pixel or latent.
    channels: usize,
}

impl Source for Input<'_> {
    fn input(&self, rows: Range<usize>) -> Result<Tensor> {
        let mut input = vec![];
        for (_, part, first) in by_pass(&rows, self.rows) {
            let x = (self.state)(&part)?; // [n, pt ph pw C]
            let (count, row) = x.dims2()?;
            input.resize((first + count) * row, 0.0);
            channel_first(&read::<f32>(&x)?, row, self.channels, &mut input[first * row..]);
        }
        let row = input.len() / rows.len();
        Ok(Tensor::from_vec(input, (rows.len(), row), &Device::Cpu)?)
    }
}
