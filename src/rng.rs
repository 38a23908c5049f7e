//! Counter-based random numbers: what is drawn depends on what it is for, never on who draws it or when.
//!
//! A [`Key`] names a draw by (seed, purpose, step, sample); [`Key::stream`] adds a token. The five numbers are the key
//! and nonce of ChaCha8, so any rank, thread or tile can make its part of a clip's noise alone, and the whole is the
//! same for any number of ranks and after a resume. Normals come in pairs by the Box-Muller transform: a fixed number
//! of words each, so that a GPU can draw the same ones.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

/// What a stream of random numbers is for. The numbers are part of the format: never reuse or renumber one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Purpose {
    /// Initial weights; `sample` is a hash of the parameter's name.
    Init = 1,
    /// The order of clips in an epoch; `step` is the epoch.
    Order = 2,
    /// Where a random crop lies.
    Crop = 3,
    /// Whether a clip is mirrored.
    Flip = 4,
    /// Which window of a long video is used.
    Window = 5,
    /// Training noise; the token is the clip's patch.
    Noise = 6,
    /// Training timesteps.
    Timestep = 7,
    /// Whether a label is dropped for guidance.
    LabelDrop = 8,
    /// Noise of the held-out loss.
    HeldoutNoise = 9,
    /// The first state of a sampler.
    Sample = 10,
    /// Draws made by tests and benchmarks.
    Test = 11,
    /// The order of buckets; `step` is the round.
    Buckets = 12,
    /// Whether a caption is dropped for guidance.
    CaptionDrop = 13,
    /// Elements of an adapter's input that are dropped; `sample` has a hash of the layer's name in it.
    AdapterDropout = 16,
}

/// Names a family of streams, one for each token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    /// The run's seed.
    pub seed: u64,
    /// What the numbers are for.
    pub purpose: Purpose,
    /// The optimizer step, epoch or other counter that moves on.
    pub step: u64,
    /// The sample within the step (its index in the global batch), or another identity.
    pub sample: u64,
}

impl Key {
    /// ChaCha's key.
    pub fn words(&self) -> [u32; 8] {
        let words = [self.seed, self.purpose as u64, self.step, self.sample];
        std::array::from_fn(|i| (words[i / 2] >> (32 * (i % 2))) as u32)
    }

    /// The stream of this key's `token`.
    pub fn stream(&self, token: u64) -> Stream {
        let mut seed = [0; 32];
        for (part, word) in seed.chunks_exact_mut(4).zip(self.words()) {
            part.copy_from_slice(&word.to_le_bytes());
        }
        let mut rng = ChaCha8Rng::from_seed(seed);
        rng.set_stream(token);
        Stream(rng)
    }
}

/// One stream of random numbers.
#[derive(Clone, Debug)]
pub struct Stream(ChaCha8Rng);

impl Stream {
    /// A number in [0, 1), with 53 random bits.
    pub fn uniform(&mut self) -> f64 {
        (self.0.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// A number in 0..n, without bias. `n` is at least 1.
    pub fn below(&mut self, n: u64) -> u64 {
        let limit = u64::MAX - u64::MAX % n;
        loop {
            let x = self.0.next_u64();
            if x < limit {
                return x % n;
            }
        }
    }

    /// A normal number of mean 0 and variance 1, in f64 (for timesteps and other single draws).
    pub fn normal(&mut self) -> f64 {
        let u = 1.0 - self.uniform(); // (0, 1]
        (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * self.uniform()).cos()
    }

    /// Fills `out` with normal numbers: 2 * ceil(n / 2) words of the stream, whatever their values.
    pub fn fill_normal(&mut self, out: &mut [f32]) {
        const UNIT: f32 = 1.0 / (1u32 << 24) as f32;
        for pair in out.chunks_mut(2) {
            let u = ((self.0.next_u32() >> 8) + 1) as f32 * UNIT; // (0, 1]
            let angle = std::f32::consts::TAU * ((self.0.next_u32() >> 8) as f32 * UNIT);
            let radius = (-2.0 * u.ln()).sqrt();
            pair[0] = radius * angle.cos();
            if let Some(second) = pair.get_mut(1) {
                *second = radius * angle.sin();
            }
        }
    }

    /// Fills `out` with random bytes.
    pub fn fill_bytes(&mut self, out: &mut [u8]) {
        self.0.fill_bytes(out);
    }

    /// A random permutation of 0..n (Fisher-Yates).
    pub fn permutation(&mut self, n: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..n).collect();
        for i in (1..n).rev() {
            order.swap(i, self.below(i as u64 + 1) as usize);
        }
        order
    }
}
