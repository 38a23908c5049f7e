//! The layers of a VAE from its config: their order, channels, and the names of their tensors in diffusers' files and
//! in Wan's own.

use super::config::{VaeConfig, pairs};

/// A tensor of a VAE.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorSpec {
    /// diffusers' name.
    pub name: String,
    /// The name in Wan's own files and in ComfyUI's.
    pub original: String,
    pub shape: Vec<usize>,
}

/// Where a layer's tensors are called what: diffusers' prefix and the original's.
#[derive(Clone, Debug)]
pub(super) struct Place(pub String, pub String);

impl Place {
    fn new(name: impl Into<String>, original: impl Into<String>) -> Self {
        Self(name.into(), original.into())
    }

    fn tensor(&self, [name, original]: [&str; 2], shape: &[usize]) -> TensorSpec {
        let [name, original] = [(&self.0, name), (&self.1, original)].map(|(prefix, name)| format!("{prefix}.{name}"));
        TensorSpec { name, original, shape: shape.to_vec() }
    }
}

/// A layer with its channels before and after.
#[derive(Clone, Debug)]
pub(super) enum LayerSpec {
    /// A product of each pixel.
    Pointwise(Place, [usize; 2]),
    /// A causal convolution.
    Conv(Place, [usize; 2]),
    Residual(Place, [usize; 2]),
    /// Norm, SiLU and a causal convolution, which have a place each.
    Head([Place; 2], [usize; 2]),
    HalveSpace(Place, usize),
    HalveTime(Place, usize),
    DoubleTime(Place, usize),
    DoubleSpace(Place, [usize; 2]),
    /// Layers with an [`AverageDown`](super::resample::AverageDown) around them: frames and sides that it halves.
    Down(Vec<LayerSpec>, [usize; 2], [usize; 2]),
    /// Layers with a [`CopyUp`](super::resample::CopyUp) around them.
    Up(Vec<LayerSpec>, [usize; 2], [usize; 2]),
}

impl LayerSpec {
    /// The layer's tensors, in the order in which it is built of them.
    pub fn tensors(&self) -> Vec<TensorSpec> {
        let of = |place: &Place, weight: &[usize]| {
            let [w, b] = ["weight", "bias"];
            vec![place.tensor([w, w], weight), place.tensor([b, b], &weight[..1])]
        };
        let below = |place: &Place, [name, original]: [&str; 2]| {
            Place(format!("{}.{name}", place.0), format!("{}.{original}", place.1))
        };
        let resample = ["resample.1", "resample.1"];
        let time = ["time_conv", "time_conv"];
        match self {
            Self::Pointwise(place, [c, out]) => of(place, &[*out, *c, 1, 1, 1]),
            Self::Conv(place, [c, out]) => of(place, &[*out, *c, 3, 3, 3]),
            Self::Residual(place, [c, out]) => {
                let mut tensors = vec![place.tensor(["norm1.gamma", "residual.0.gamma"], &[*c, 1, 1, 1])];
                tensors.extend(of(&below(place, ["conv1", "residual.2"]), &[*out, *c, 3, 3, 3]));
                tensors.push(place.tensor(["norm2.gamma", "residual.3.gamma"], &[*out, 1, 1, 1]));
                tensors.extend(of(&below(place, ["conv2", "residual.6"]), &[*out, *out, 3, 3, 3]));
                if c != out {
                    tensors.extend(of(&below(place, ["conv_shortcut", "shortcut"]), &[*out, *c, 1, 1, 1]));
                }
                tensors
            }
            Self::Head([norm, conv], [c, out]) => {
                let mut tensors = vec![norm.tensor(["gamma", "gamma"], &[*c, 1, 1, 1])];
                tensors.extend(of(conv, &[*out, *c, 3, 3, 3]));
                tensors
            }
            Self::HalveSpace(place, c) => of(&below(place, resample), &[*c, *c, 3, 3]),
            Self::DoubleSpace(place, [c, out]) => of(&below(place, resample), &[*out, *c, 3, 3]),
            Self::HalveTime(place, c) => of(&below(place, time), &[*c, *c, 3, 1, 1]),
            Self::DoubleTime(place, c) => of(&below(place, time), &[2 * c, *c, 3, 1, 1]),
            Self::Down(layers, ..) | Self::Up(layers, ..) => layers.iter().flat_map(Self::tensors).collect(),
        }
    }
}

/// The encoder or the decoder: layers before and after the attention over a whole frame.
#[derive(Clone, Debug)]
pub(super) struct HalfSpec {
    pub before: Vec<LayerSpec>,
    /// The attention's place and channels.
    pub attention: (Place, usize),
    pub after: Vec<LayerSpec>,
}

impl HalfSpec {
    /// The attention's tensors, in the order in which it is built of them.
    pub fn attention_tensors(&self) -> [TensorSpec; 5] {
        let (place, c) = &self.attention;
        let attention = [
            (["norm.gamma"; 2], vec![*c, 1, 1]),
            (["to_qkv.weight"; 2], vec![3 * c, *c, 1, 1]),
            (["to_qkv.bias"; 2], vec![3 * c]),
            (["proj.weight"; 2], vec![*c, *c, 1, 1]),
            (["proj.bias"; 2], vec![*c]),
        ];
        attention.map(|(names, shape)| place.tensor(names, &shape))
    }

    /// All tensors.
    pub fn tensors(&self) -> Vec<TensorSpec> {
        let before = self.before.iter().flat_map(LayerSpec::tensors);
        before.chain(self.attention_tensors()).chain(self.after.iter().flat_map(LayerSpec::tensors)).collect()
    }

    /// Pixels that the layers before the attention see before and beyond those under a run of its input.
    pub fn halo_before(&self) -> [usize; 2] {
        self.before.iter().rev().fold([0; 2], |halo, layer| layer.halo(halo))
    }

    /// Pixels of the attention's output that the layers after it see before and beyond a run of theirs.
    pub fn halo_after(&self) -> [usize; 2] {
        self.after.iter().rev().fold([0; 2], |halo, layer| layer.halo(halo))
    }
}

impl LayerSpec {
    /// What the layer sees before and beyond the pixels under a run of its output with `halo` around it.
    fn halo(&self, [before, beyond]: [usize; 2]) -> [usize; 2] {
        match self {
            Self::Pointwise(..) | Self::HalveTime(..) | Self::DoubleTime(..) => [before, beyond],
            Self::Conv(..) | Self::Head(..) => [before + 1, beyond + 1],
            Self::Residual(..) => [before + 2, beyond + 2],
            Self::HalveSpace(..) => [2 * before, 2 * beyond + 1],
            Self::DoubleSpace(..) => [(before + 1).div_ceil(2), (beyond + 1).div_ceil(2)],
            Self::Down(layers, ..) | Self::Up(layers, ..) => {
                layers.iter().rev().fold([before, beyond], |halo, layer| layer.halo(halo))
            }
        }
    }
}

/// The middle's places, and the head's.
fn frame(half: &str, c: usize) -> (LayerSpec, (Place, usize), LayerSpec, [Place; 2]) {
    let middle = |name: &str, i: usize| Place(format!("{half}.mid_block.{name}"), format!("{half}.middle.{i}"));
    let head = |name: &str, i: usize| Place(format!("{half}.{name}"), format!("{half}.head.{i}"));
    (
        LayerSpec::Residual(middle("resnets.0", 0), [c; 2]),
        (middle("attentions.0", 1), c),
        LayerSpec::Residual(middle("resnets.1", 2), [c; 2]),
        [head("norm_out", 0), head("conv_out", 2)],
    )
}

pub(super) fn encoder(config: &VaeConfig) -> HalfSpec {
    let dims = config.encoder_dims();
    let (levels, last) = (dims.len() - 1, dims[dims.len() - 1]);
    let first = Place::new("encoder.conv_in", "encoder.conv1");
    let mut before = vec![LayerSpec::Conv(first, [config.in_channels, dims[0]])];
    let mut flat = 0; // layers so far, as the 2.1 VAE counts them
    for (i, [from, to]) in pairs(&dims).enumerate() {
        let mut layers = vec![];
        let place = |flat: usize, j: usize, name: &str| match config.is_residual {
            true => {
                Place(format!("encoder.down_blocks.{i}.{name}"), format!("encoder.downsamples.{i}.downsamples.{j}"))
            }
            false => Place(format!("encoder.down_blocks.{flat}"), format!("encoder.downsamples.{flat}")),
        };
        for j in 0..config.num_res_blocks {
            let c = if j == 0 { from } else { to };
            layers.push(LayerSpec::Residual(place(flat, j, &format!("resnets.{j}")), [c, to]));
            flat += 1;
        }
        let halves = i + 1 < levels;
        let time = halves && config.temperal_downsample[i];
        if halves {
            let place = place(flat, config.num_res_blocks, "downsampler");
            layers.push(LayerSpec::HalveSpace(place.clone(), to));
            if time {
                layers.push(LayerSpec::HalveTime(place, to));
            }
            flat += 1;
        }
        match config.is_residual {
            true => {
                let factors = [1 + usize::from(time), 1 + usize::from(halves)];
                before.push(LayerSpec::Down(layers, factors, [from, to]));
            }
            false => before.extend(layers),
        }
    }
    let (resnet, attention, other, head) = frame("encoder", last);
    before.push(resnet);
    let z = 2 * config.z_dim;
    let quant = LayerSpec::Pointwise(Place::new("quant_conv", "conv1"), [z, z]);
    HalfSpec { before, attention, after: vec![other, LayerSpec::Head(head, [last, z]), quant] }
}

pub(super) fn decoder(config: &VaeConfig) -> HalfSpec {
    let dims = config.decoder_dims();
    let (levels, z) = (dims.len() - 1, config.z_dim);
    let (resnet, attention, other, head) = frame("decoder", dims[0]);
    let before = vec![
        LayerSpec::Pointwise(Place::new("post_quant_conv", "conv2"), [z, z]),
        LayerSpec::Conv(Place::new("decoder.conv_in", "decoder.conv1"), [z, dims[0]]),
        resnet,
    ];
    let mut after = vec![other];
    let mut flat = 0;
    for (i, [from, to]) in pairs(&dims).enumerate() {
        let mut layers = vec![];
        // In the 2.1 VAE a level's last layer has halved the channels.
        let from = if i > 0 && !config.is_residual { from / 2 } else { from };
        let place = |flat: usize, j: usize, name: &str| match config.is_residual {
            true => Place(format!("decoder.up_blocks.{i}.{name}"), format!("decoder.upsamples.{i}.upsamples.{j}")),
            false => Place(format!("decoder.up_blocks.{i}.{name}"), format!("decoder.upsamples.{flat}")),
        };
        for j in 0..=config.num_res_blocks {
            let c = if j == 0 { from } else { to };
            layers.push(LayerSpec::Residual(place(flat, j, &format!("resnets.{j}")), [c, to]));
            flat += 1;
        }
        let doubles = i + 1 < levels;
        let time = doubles && config.temperal_upsample(i);
        if doubles {
            let name = if config.is_residual { "upsampler" } else { "upsamplers.0" };
            let place = place(flat, config.num_res_blocks + 1, name);
            if time {
                layers.push(LayerSpec::DoubleTime(place.clone(), to));
            }
            layers.push(LayerSpec::DoubleSpace(place, [to, if config.is_residual { to } else { to / 2 }]));
            flat += 1;
        }
        match config.is_residual && doubles {
            true => after.push(LayerSpec::Up(layers, [1 + usize::from(time), 2], [from, to])),
            false => after.extend(layers),
        }
    }
    after.push(LayerSpec::Head(head, [dims[levels], config.out_channels]));
    HalfSpec { before, attention, after }
}

/// Every tensor of a VAE.
pub fn tensors(config: &VaeConfig) -> Vec<TensorSpec> {
    [encoder(config).tensors(), decoder(config).tensors()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The halos that were found to be exact, and one less not, for both published VAEs.
    #[test]
    fn halos_are_what_the_published_layers_see() {
        for config in [VaeConfig::default(), VaeConfig::wan22()] {
            assert_eq!((encoder(&config).halo_before(), decoder(&config).halo_after()), ([77, 84], [15, 15]));
        }
    }
}
