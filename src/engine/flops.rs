//! Counts the operations of a step, so that a [`StepMeter`](crate::observe::meter::StepMeter) can say how far it is:
//! products only, as this engine does them, recomputed ones counted too. [`plan::flops`](crate::plan::flops) counts
//! what any engine would have to do at least.

use std::time::Duration;

use super::Engine;
use crate::attention::{BACKWARD, FORWARD};
use crate::model::Model;
use crate::observe::meter::Section;

/// Operations of a row in the forward pass of each token-local piece.
pub(super) struct PerRow {
    pub embed: u64,
    pub before: u64,
    pub after: u64,
    pub head: u64,
    /// How often these are done in a backward pass, which records forward first: a product for the input's gradient,
    /// and one for the weight's unless it is frozen. The few of adapters are not counted.
    pub both: u64,
    /// Whether the embedding has a backward pass.
    trains_embed: bool,
}

impl PerRow {
    pub fn new(model: &Model) -> Self {
        let config = &model.config;
        let (d, hidden) = (config.width() as u64, config.ffn_dim as u64);
        let cross = if config.text_dim == 0 { 0 } else { 4 * d * d }; // but for its attention to a few words
        Self {
            embed: 2 * config.patch_in() as u64 * d,
            before: 6 * d * d,
            after: 2 * d * d + cross + 4 * d * hidden,
            head: 2 * d * config.patch_out() as u64,
            both: if model.lora.is_some() { 2 } else { 3 },
            trains_embed: !model.embed.is_frozen(),
        }
    }
}

impl Engine<'_> {
    /// Operations of [`loss_and_gradients`](Self::loss_and_gradients) on this rank. Attention's are those of a rank
    /// that computes it, also where it only rehearses.
    pub fn operations(&self) -> u64 {
        let (each, rows) = (&self.per_row, self.rows() as u64);
        let keeps = self.stash.lock().keeps_attention();
        let times = if keeps { 1 } else { 2 }; // of attention's forward pass
        let groups = self.groups.len() as u64;
        let both = each.both;
        let before = (times + 1) * groups + both;
        let block = rows * (before * each.before + (1 + both) * each.after);
        let d = self.model.config.attention_head_dim;
        let tokens = self.grid.iter().product::<usize>();
        let heads: usize = self.groups.iter().map(|group| group.attention.local_heads()).sum();
        let pairs = (self.batch * heads * self.groups[0].attention.group_tokens() * tokens * d) as u64;
        let attention = pairs * (times * FORWARD + BACKWARD);
        let embed = if each.trains_embed { 2 } else { 1 };
        let ends = rows * (embed * each.embed + both * each.head);
        ends + self.model.blocks.len() as u64 * (block + attention)
    }

    /// How long this rank has spent in attention so far, forward and backward, without its all-to-alls: all the rest of
    /// a step grows with the number of tokens only.
    pub fn attention_time(&self) -> Duration {
        let spent = self.meter.spent();
        spent.of(Section::Attention) + spent.of(Section::AttentionBackward)
    }
}
