//! What the VAE takes: weights, remembered frames and operations, from the list of its layers.

use super::bands;
use super::config::VaeConfig;
use super::spec::{HalfSpec, LayerSpec, decoder, encoder};

/// Bytes that a GPU gathers pixels in, or holds scores of attention in, at a time: about what an L2 cache holds.
pub const GPU_SCRATCH: usize = 32 << 20;

/// What one direction of the VAE takes, each for a pixel of a frame.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct VaeCost {
    /// Parameters of all layers.
    pub parameters: usize,
    /// Elements that layers remember of a clip, for each pixel.
    pub remembered: f64,
    /// Elements that layers remember of a clip on its way down its rows, for each frame and pixel of its width.
    pub rows_remembered: f64,
    /// Elements of the largest frame between two layers, for each pixel.
    pub widest: f64,
    /// Pixels of a latent's side.
    pub side: usize,
    /// Floating-point operations of the convolutions, for each pixel of each frame but the first.
    pub flops: f64,
}

impl VaeCost {
    /// Of the encoder.
    pub fn of_encoder(config: &VaeConfig) -> Self {
        let per_patch = (config.patch() * config.patch()) as f64;
        Walk { space: 1.0 / per_patch, time: 1.0, ..Walk::default() }.of(&encoder(config), config)
    }

    /// Of the decoder.
    pub fn of_decoder(config: &VaeConfig) -> Self {
        let per_latent = (config.scale_space() * config.scale_space()) as f64;
        let start = Walk { space: 1.0 / per_latent, time: 1.0 / config.scale_time() as f64, ..Walk::default() };
        start.of(&decoder(config), config)
    }

    /// Bytes of f32 weights.
    pub fn weight_bytes(&self) -> u64 {
        4 * self.parameters as u64
    }

    /// Bytes that frames of so many pixels take while they stream through one by one: what is remembered, and some of
    /// the largest frames (a layer's input, its packed copy, its output and a residual).
    pub fn stream_bytes(&self, pixels: usize) -> u64 {
        (4.0 * (self.remembered + 4.0 * self.widest) * pixels as f64) as u64
    }

    /// Bytes that a clip of this size, in pixels, takes on one rank on a CPU, which streams it as it takes less memory:
    /// frame by frame, or down its rows.
    pub fn clip_bytes(&self, [frames, rows, width]: [usize; 3]) -> u64 {
        if !bands::are_smaller(frames, rows) {
            return self.stream_bytes(rows * width);
        }
        let band = self.stream_bytes(width * (bands::height() * self.side).min(rows));
        band + (4.0 * self.rows_remembered * (frames * width) as f64) as u64
    }
}

/// A walk through the layers: pixels and frames of the layer at hand, for each pixel and frame of the clip.
#[derive(Default)]
struct Walk {
    space: f64,
    time: f64,
    remembered: f64,
    rows_remembered: f64,
    widest: f64,
    flops: f64,
}

impl Walk {
    fn of(mut self, spec: &HalfSpec, config: &VaeConfig) -> VaeCost {
        self.layers(&spec.before);
        let c = spec.attention.1;
        self.product(4 * c * c); // q, k, v and proj; the scores grow with the frame and are little
        self.layers(&spec.after);
        let parameters = spec.tensors().iter().map(|tensor| tensor.shape.iter().product::<usize>()).sum();
        let Self { remembered, rows_remembered, widest, flops, .. } = self;
        VaeCost { parameters, remembered, rows_remembered, widest, side: config.scale_space(), flops }
    }

    fn layers(&mut self, layers: &[LayerSpec]) {
        for layer in layers {
            match layer {
                LayerSpec::Pointwise(_, [c, out]) => self.product(c * out),
                LayerSpec::Conv(_, [c, out]) | LayerSpec::Head(_, [c, out]) => self.causal(*c, *out),
                LayerSpec::Residual(_, [c, out]) => {
                    self.remember_rows(2 * c);
                    self.causal(*c, *out);
                    self.causal(*out, *out);
                    self.product(if c == out { 0 } else { c * out });
                }
                LayerSpec::HalveSpace(_, c) => {
                    self.remember_rows(2 * c);
                    self.space /= 4.0;
                    self.product(9 * c * c);
                }
                LayerSpec::HalveTime(_, c) => {
                    self.time /= 2.0;
                    self.remember(*c);
                    self.product(3 * c * c);
                }
                LayerSpec::DoubleTime(_, c) => {
                    self.remember(2 * c);
                    self.product(3 * c * 2 * c);
                    self.time *= 2.0;
                }
                LayerSpec::DoubleSpace(_, [c, out]) => {
                    self.remember_rows(2 * c);
                    self.space *= 4.0;
                    self.product(4 * c * out); // of each pixel 2 x 2 of the 3 x 3, see conv.rs
                    self.passes(*out);
                }
                LayerSpec::Down(layers, _, [c, _]) | LayerSpec::Up(layers, _, [c, _]) => {
                    self.remember_rows(2 * layers.len() * c); // the shortcut waits for what the layers wait for
                    self.layers(layers);
                }
            }
        }
    }

    fn causal(&mut self, c: usize, out: usize) {
        self.remember(2 * c);
        self.remember_rows(2 * c);
        self.product(27 * c * out);
        self.passes(out);
    }

    /// `n` multiplications and additions a pixel.
    fn product(&mut self, n: usize) {
        self.flops += 2.0 * n as f64 * self.space * self.time;
    }

    fn remember(&mut self, elements: usize) {
        self.remembered += elements as f64 * self.space;
    }

    /// On the way down the rows, of each frame: a row is shorter as a frame is smaller.
    fn remember_rows(&mut self, elements: usize) {
        self.rows_remembered += elements as f64 * self.space.sqrt() * self.time;
    }

    fn passes(&mut self, channels: usize) {
        self.widest = self.widest.max(channels as f64 * self.space);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The counts of diffusers' layers, as its convolutions were counted; decoding doubles sides with fewer products.
    #[test]
    fn counts_are_those_of_the_published_vaes() {
        for (config, remembered, millions) in [
            (VaeConfig::default(), [1404.0, 2364.5], [5.00, 8.44]),
            (VaeConfig::wan22(), [588.5, 1784.4], [3.49, 18.39]),
        ] {
            let [encode, decode] = [VaeCost::of_encoder(&config), VaeCost::of_decoder(&config)];
            for (cost, remembered) in [encode, decode].iter().zip(remembered) {
                assert!((cost.remembered - remembered).abs() < 0.1, "{cost:?}, not {remembered}");
            }
            assert!((encode.flops / 1e6 - millions[0]).abs() < 0.01, "{encode:?}");
            let share = decode.flops / 1e6 / millions[1];
            assert!((0.9..1.0).contains(&share), "{decode:?}: {share}");
        }
    }
}
