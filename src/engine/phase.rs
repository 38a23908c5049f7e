//! [`Phase`]: where in a step the engine is, by which buffers live together. For whoever measures or predicts memory.

/// A part of a step. `Again` is attention once more, where its output is not stashed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Phase {
    /// From rows of frames to the residual stream.
    Embed,
    /// Tiles of q, k and v, which then go from tokens to heads.
    ForwardExchange,
    ForwardAttention,
    /// Its output, back with the tokens, goes through the block's other half.
    ForwardAfter,
    Head,
    AgainExchange,
    AgainAttention,
    BackwardAfter,
    BackwardExchange,
    BackwardAttention,
    /// dq, dk and dv go from heads to tokens.
    BackwardReturn,
    BackwardBefore,
    /// Behind the last block: the embedding's gradient, sums over ranks, the optimizer.
    Update,
}

impl Phase {
    pub fn name(self) -> &'static str {
        match self {
            Self::Embed => "embedding",
            Self::ForwardExchange => "forward: exchange of q, k, v",
            Self::ForwardAttention => "forward: attention",
            Self::ForwardAfter => "forward: after attention",
            Self::Head => "head and loss",
            Self::AgainExchange => "backward: exchange of q, k, v, again",
            Self::AgainAttention => "backward: attention, again",
            Self::BackwardAfter => "backward: after attention",
            Self::BackwardExchange => "backward: exchange of q, k, v",
            Self::BackwardAttention => "backward: attention",
            Self::BackwardReturn => "backward: exchange of gradients",
            Self::BackwardBefore => "backward: before attention",
            Self::Update => "sums of gradients, optimizer",
        }
    }
}
