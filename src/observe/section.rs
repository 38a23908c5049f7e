//! Lists what a training step is made of: the phases that the engine goes through, the sections that a rank's time is
//! divided into, and the ways that bytes move.
//!
//! Buffers live by the phase and are predicted and measured by it; a phase computes in one section, so that the engine
//! says once where it is.

use std::fmt::Write;
use std::time::Duration;

use crate::files::gib;
use crate::terminal::counted;

/// A list of names, an enum's variants in order.
macro_rules! named {
    ($(#[$meta:meta])* $name:ident { $($(#[$of:meta])* $variant:ident: $text:literal,)* }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum $name { $($(#[$of])* $variant,)* }

        impl $name {
            /// All, in order.
            pub const ALL: [Self; [$($text),*].len()] = [$(Self::$variant),*];

            /// Its name for people.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }
        }
    };
}

named! {
    /// The sections of a step that a rank's time is divided into.
    #[derive(Default)]
    Section {
        Data: "waiting for clips",
        Embed: "embedding",
        Before: "before attention",
        Attention: "attention",
        After: "after attention",
        Head: "head and loss",
        AfterBackward: "after attention, backward",
        AttentionBackward: "attention, backward",
        BeforeBackward: "before attention, backward",
        EmbedBackward: "embedding, backward",
        Exchange: "exchanges between ranks",
        Stash: "waiting for the stash",
        Optimizer: "optimizer",
        #[default]
        Rest: "other",
    }
}

named! {
    /// A phase of a step: where the engine is, by which buffers live together. `Again` is attention once more, where
    /// its output is not stashed.
    Phase {
        /// From rows of frames to the residual stream.
        Embed: "embedding",
        /// Tiles of q, k and v, which then go from tokens to heads.
        ForwardExchange: "forward: exchange of q, k, v",
        ForwardAttention: "forward: attention",
        /// Its output, back with the tokens, goes through the block's other half.
        ForwardAfter: "forward: after attention",
        Head: "head and loss",
        AgainExchange: "backward: exchange of q, k, v, again",
        AgainAttention: "backward: attention, again",
        BackwardAfter: "backward: after attention",
        BackwardExchange: "backward: exchange of q, k, v",
        BackwardAttention: "backward: attention",
        /// dq, dk and dv go from heads to tokens.
        BackwardReturn: "backward: exchange of gradients",
        BackwardBefore: "backward: before attention",
        /// Behind the last block: the embedding's gradient, sums over ranks, the optimizer.
        Update: "sums of gradients, optimizer",
    }
}

impl Phase {
    /// The section that its computing belongs to. What it waits for, exchanges and the stash, has sections of its own.
    pub fn section(self) -> Section {
        match self {
            Self::Embed => Section::Embed,
            Self::ForwardExchange | Self::AgainExchange | Self::BackwardExchange => Section::Before,
            Self::ForwardAttention | Self::AgainAttention => Section::Attention,
            Self::ForwardAfter => Section::After,
            Self::Head => Section::Head,
            Self::BackwardAfter => Section::AfterBackward,
            Self::BackwardAttention => Section::AttentionBackward,
            Self::BackwardReturn => Section::Exchange,
            Self::BackwardBefore => Section::BeforeBackward,
            Self::Update => Section::EmbedBackward,
        }
    }
}

named! {
    /// The collectives by which bytes leave a rank, and the ways to and from its stash.
    Traffic {
        AllToAll: "all-to-all",
        AllGather: "all-gather",
        ReduceScatter: "reduce-scatter",
        AllReduce: "all-reduce",
        Broadcast: "broadcast",
        StashWritten: "stash, written",
        StashRead: "stash, read",
    }
}

/// Where a step's time went, by [`Section::ALL`], and its bytes, by [`Traffic::ALL`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StepTimes {
    pub time: [Duration; Section::ALL.len()],
    pub bytes: [u64; Traffic::ALL.len()],
}

impl StepTimes {
    /// Adds another's.
    pub fn add(&mut self, other: &Self) {
        self.time.iter_mut().zip(other.time).for_each(|(sum, x)| *sum += x);
        self.bytes.iter_mut().zip(other.bytes).for_each(|(sum, x)| *sum += x);
    }

    /// The time of one section.
    pub fn of(&self, section: Section) -> Duration {
        self.time[section as usize]
    }

    /// The bytes of one kind of traffic.
    pub fn moved(&self, traffic: Traffic) -> u64 {
        self.bytes[traffic as usize]
    }

    /// A table of `steps` steps that took this together, each of `tokens` tokens.
    pub fn table(&self, steps: u64, tokens: u64) -> String {
        let times = steps.max(1) as f64;
        let seconds = |section: Section| self.of(section).as_secs_f64() / times;
        let whole: f64 = Section::ALL.into_iter().map(seconds).sum();
        let tokens = counted(tokens, "token", "tokens");
        let mut text =
            format!("a step of {tokens}: {whole:.3} s, on rank 0, the mean of {}", counted(steps, "step", "steps"));
        for section in Section::ALL.into_iter().filter(|&section| seconds(section) > 0.0) {
            let (name, s) = (section.name(), seconds(section));
            let _ = write!(text, "\n  {name:28}{s:>12.3} s {:5.1} %", 100.0 * s / whole);
        }
        for traffic in Traffic::ALL.into_iter().filter(|&traffic| self.moved(traffic) > 0) {
            let (name, bytes) = (traffic.name(), (self.moved(traffic) as f64 / times) as u64);
            let _ = write!(text, "\n  moved: {name:21}{:>12}", gib(bytes));
        }
        text
    }

    /// Names and values of a step for its record: `seconds_SECTION`, `bytes_TRAFFIC`; what is 0 is left out.
    pub fn values(&self) -> impl Iterator<Item = (String, f64)> {
        let times = Section::ALL.map(|section| ("seconds", section.name(), self.of(section).as_secs_f64()));
        let bytes = Traffic::ALL.map(|traffic| ("bytes", traffic.name(), self.moved(traffic) as f64));
        let key = |kind: &str, name: &str| format!("{kind}_{}", name.replace(", ", "_").replace([' ', '-'], "_"));
        let values = times.into_iter().chain(bytes).filter(|(.., value)| *value > 0.0);
        values.map(move |(kind, name, value)| (key(kind, name), value))
    }
}
