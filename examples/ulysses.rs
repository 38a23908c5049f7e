//! Ulysses alone, around somebody's own attention: each rank holds a part of the tokens, the exchange gives it whole
//! heads, any attention runs on them, and the exchange goes back. Run it with `cargo run --release --example ulysses`.

use candle_core::{D, DType, Device, Tensor};
use longreel::Result;
use longreel::attention::Ulysses;
use longreel::parallel::run_threads;

const RANKS: usize = 3; // they need divide neither the tokens nor the heads
const TOKENS: usize = 10;
const HEADS: usize = 4;
const HEAD_DIM: usize = 8;

/// Your attention: q, k and v `[B, H, S, d]` to `[B, H, S, d]`. It sees all tokens and knows nothing of ranks.
fn attention(q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
    let logits = (q.matmul(&k.t()?)? / (HEAD_DIM as f64).sqrt())?; // [B, H, S, S]
    let weights = logits.broadcast_sub(&logits.max_keepdim(D::Minus1)?)?.exp()?;
    Ok(weights.broadcast_div(&weights.sum_keepdim(D::Minus1)?)?.matmul(v)?)
}

/// Some q, k or v of all tokens, `[B, S, H, d]`.
fn projection(frequency: f32) -> Result<Tensor> {
    let values: Vec<f32> = (0..TOKENS * HEADS * HEAD_DIM).map(|i| (i as f32 * frequency).sin()).collect();
    Ok(Tensor::from_vec(values, (1, TOKENS, HEADS, HEAD_DIM), &Device::Cpu)?)
}

fn main() -> Result<()> {
    let (q, k, v) = (projection(0.7)?, projection(1.3)?, projection(2.9)?);

    let parts = run_threads(RANKS, 1, |comm| {
        let ulysses = Ulysses::new(comm, TOKENS, HEADS)?;
        let tokens = ulysses.local_tokens();
        let mine = |x: &Tensor| x.narrow(1, tokens.start, tokens.len()); // [B, S_local, H, d]
        let (q, k, v) = (mine(&q)?, mine(&k)?, mine(&v)?);

        let heads = ulysses.seq_to_heads_many(&[&q, &k, &v])?; // each [B, H_local, S, d]
        let o = attention(&heads[0], &heads[1], &heads[2])?; // [B, H_local, S, d]
        ulysses.heads_to_seq(&o) // [B, S_local, H, d]
    })?;

    let all_heads = |x: &Tensor| x.transpose(1, 2)?.contiguous(); // [B, H, S, d]
    let expected = attention(&all_heads(&q)?, &all_heads(&k)?, &all_heads(&v)?)?.transpose(1, 2)?;
    let difference =
        (Tensor::cat(&parts, 1)? - expected)?.abs()?.max_all()?.to_dtype(DType::F64)?.to_scalar::<f64>()?;
    println!("{RANKS} ranks, {TOKENS} tokens, {HEADS} heads: largest difference from one rank {difference:.1e}");
    Ok(())
}
