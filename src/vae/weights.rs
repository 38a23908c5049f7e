//! Reads a VAE's weights: a diffusers folder, or a single file of Wan's own or ComfyUI's, which its tensors tell apart.

use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::Path;

use super::config::{MEAN_21, VaeConfig};
use super::spec::{self, TensorSpec};
use crate::files::model_folder::{CONFIG, Folder, is_pipeline, lacks, read_config};
use crate::files::{KnownHashes, Tensors, WeightFile, check_names, to_hex};
use crate::{Error, Result, bail};

/// Single files that Wan's own folders hold.
const ORIGINALS: [&str; 2] = ["Wan2.1_VAE.pth", "Wan2.2_VAE.pth"];

/// The version of how weights are hashed.
const HASHING: u32 = 1;

/// The encoder's first layer, by Wan's own name and by diffusers'.
const FIRST: [&str; 2] = ["encoder.conv1.weight", "encoder.conv_in.weight"];

/// A VAE's config, and its tensors, read when asked for.
pub struct VaeWeights {
    pub config: VaeConfig,
    file: WeightFile,
    /// Whether names are Wan's own.
    original: bool,
}

impl VaeWeights {
    /// Opens a folder with `config.json` and weights (or a pipeline folder with `vae` in it, or Wan's own), or a file.
    /// All names and shapes are checked; no tensor is read.
    ///
    /// # Errors
    /// There is nothing of the kind; the file is damaged; the config is of another model, or the tensors do not fit it.
    pub fn open(path: &Path) -> Result<Self> {
        let inner = path.join("vae");
        if let Some(dir) = [path, &inner].into_iter().find(|dir| is_config(&dir.join(CONFIG))) {
            return Self::open_folder(dir);
        }
        if !path.is_dir() {
            return Self::open_file(path);
        }
        match ORIGINALS.map(|name| path.join(name)).into_iter().find(|file| file.is_file()) {
            Some(file) => Self::open_file(&file),
            None if is_pipeline(path) => Err(lacks(path, "vae", "another VAE's folder or file")),
            None => bail!(
                Data,
                "{}: has neither {CONFIG}, nor vae/{CONFIG}, nor {}; a VAE's folder or file is needed",
                path.display(),
                ORIGINALS.join(" or ")
            ),
        }
    }

    /// Whether `path` is meant to be a VAE, so that [`open`](Self::open) is to say what is wrong with it: a file with
    /// an encoder's first layer or a pickle, a folder with one of Wan's own files and no config, or one whose
    /// `config.json` names an AutoencoderKL of any kind.
    pub fn is_vae(path: &Path) -> bool {
        if path.is_file() {
            let mut magic = [0; 2];
            let begun = std::fs::File::open(path).and_then(|mut file| file.read_exact(&mut magic));
            let layers = || Tensors::open(path).is_ok_and(|tensors| FIRST.iter().any(|name| tensors.contains(name)));
            return begun.is_ok() && (&magic == b"PK" || layers());
        }
        let class = || {
            let config = read_config(&path.join(CONFIG)).ok()?;
            config.get("_class_name")?.as_str().map(|class| class.starts_with("AutoencoderKL"))
        };
        let alone = !path.join(CONFIG).is_file(); // else that is of the transformer in the same folder
        class() == Some(true) || alone && ORIGINALS.iter().any(|name| path.join(name).is_file())
    }

    fn open_folder(dir: &Path) -> Result<Self> {
        let path = dir.join(CONFIG);
        // First, since it says what else the folder may be of.
        let config = VaeConfig::from_json(&read_config(&path)?, &path)?;
        let (_, tensors) = Folder::open(dir)?.into_parts();
        Self::checked(config, WeightFile::Safetensors(tensors))
    }

    fn open_file(path: &Path) -> Result<Self> {
        let file = WeightFile::open(path)?;
        let beside = path.with_file_name(CONFIG);
        let config = match is_config(&beside) {
            true => VaeConfig::from_json(&read_config(&beside)?, &beside)?,
            false => guess(&file.shapes()).map_err(|why| Error::Data(format!("{}: {why}", path.display())))?,
        };
        Self::checked(config, file)
    }

    fn checked(config: VaeConfig, file: WeightFile) -> Result<Self> {
        file.check_floats()?;
        let found = file.shapes();
        let original = found.contains_key("encoder.conv1.weight");
        let expected: Vec<(String, Vec<usize>)> = spec::tensors(&config)
            .into_iter()
            .map(|tensor| (if original { tensor.original } else { tensor.name }, tensor.shape))
            .collect();
        check_names(file.path(), &found, &expected)?;
        Ok(Self { config, file, original })
    }

    /// The file, or the index of its shards.
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// The same as [`encoder_hash`](Self::encoder_hash), from `known` if the files are those that it was computed of.
    ///
    /// # Errors
    /// Those of [`read`](Self::read).
    pub fn encoder_hash_known(&self, known: &KnownHashes) -> Result<String> {
        known.get(&format!("VAE's encoder {HASHING} {:?}", self.config), &self.file.files(), || self.encoder_hash())
    }

    /// The SHA-256 of all that latents depend on: the encoder's weights as f32, in the order of its layers, and the
    /// latents' mean and deviation. It is the same for the same VAE in any kind of file.
    ///
    /// # Errors
    /// Those of [`read`](Self::read).
    pub fn encoder_hash(&self) -> Result<String> {
        let mut sum = Sha256::new();
        let config = &self.config;
        sum.update(format!("{:?}", (&config.temperal_downsample, config.is_residual, config.patch())));
        for tensor in spec::encoder(config).tensors() {
            sum.update(format!("{:?}", tensor.shape));
            sum.update(bytemuck::cast_slice::<f32, u8>(&self.read(&tensor)?));
        }
        sum.update(bytemuck::cast_slice::<f32, u8>(&config.latents_mean));
        sum.update(bytemuck::cast_slice::<f32, u8>(&config.latents_std));
        Ok(to_hex(sum.finalize()))
    }

    /// Reads the decoder's tensors and forgets them, for a run that needs them later.
    ///
    /// # Errors
    /// Those of [`read`](Self::read).
    pub fn check_decoder(&self) -> Result<()> {
        spec::decoder(&self.config).tensors().iter().try_for_each(|tensor| self.read(tensor).map(drop))
    }

    /// A tensor's values.
    ///
    /// # Errors
    /// It cannot be read, is of another type than a float, or has a value that is not finite.
    pub fn read(&self, tensor: &TensorSpec) -> Result<Vec<f32>> {
        let name = if self.original { &tensor.original } else { &tensor.name };
        let mut values = vec![0.0; tensor.shape.iter().product()];
        self.file.read_f32_at(name, 0, &mut values)?;
        if let Some(value) = values.iter().find(|x| !x.is_finite()) {
            bail!(Data, "{}: tensor `{name}` has a value that is {value}; the file is damaged", self.path().display());
        }
        Ok(values)
    }
}

/// Whether there is such a config.json, and it is not that of Wan's transformer, which lies beside Wan's VAE.
fn is_config(path: &Path) -> bool {
    let is_wans = |config: serde_json::Value| ["dim", "num_heads"].iter().all(|key| config.get(key).is_some());
    path.is_file() && !read_config(path).is_ok_and(is_wans)
}

/// The config of a file that has none beside it: one of the two published kinds, with its widths.
fn guess(shapes: &BTreeMap<String, Vec<usize>>) -> std::result::Result<VaeConfig, String> {
    let first = |names: [&str; 2], dim: usize| {
        names.iter().find_map(|name| shapes.get(*name)).and_then(|shape| shape.get(dim)).copied()
    };
    let (Some(base), Some(z)) = (first(FIRST, 0), first(["conv2.weight", "post_quant_conv.weight"], 0)) else {
        return Err("is not a VAE of Wan: it has no `encoder.conv1.weight` and `conv2.weight`".into());
    };
    let residual = shapes.contains_key("encoder.downsamples.0.downsamples.0.residual.0.gamma")
        || shapes.contains_key("encoder.down_blocks.0.resnets.0.norm1.gamma");
    let known = if residual { VaeConfig::wan22() } else { VaeConfig::default() };
    if z != known.z_dim {
        return Err(format!(
            "its latents have {z} channels; without a {CONFIG} beside it, only the published VAEs of {} and {} channels \
             are known",
            MEAN_21.len(),
            VaeConfig::wan22().z_dim
        ));
    }
    let decoder = first(["decoder.head.0.gamma", "decoder.norm_out.gamma"], 0);
    let config = VaeConfig { base_dim: base, decoder_base_dim: decoder, ..known };
    config.check().map(|()| config)
}
