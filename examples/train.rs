//! Trains from code: the config is made here, the run is an ordinary one, and a hook sees each step.
//!
//!     cargo run --release --example train -- datasets/bbb/train runs/example
//!
//! Afterwards `longreel sample runs/example -o clip.mp4 --count 1` works as for any run.

use longreel::config::{Prediction, RunConfig};
use longreel::train::Trainer;
use longreel::{Error, Result};
use std::ops::ControlFlow;
use std::path::Path;

/// The keys of docs/configuration.md; what is left out has its default.
const CONFIG: &str = r#"
    [data]
    path = "set below"
    frames = 4
    stride = 6
    height = 32
    width = 48

    [model]
    patch_size = [2, 8, 8] # 2 x 4 x 6 = 48 tokens
    num_attention_heads = 2
    attention_head_dim = 32
    num_layers = 2
    ffn_dim = 256
    pos_embed = true
"#;

fn main() -> Result<()> {
    let [data, out]: [String; 2] = std::env::args().skip(1).collect::<Vec<_>>().try_into().map_err(|_| {
        Error::Config("usage: train DATA OUT".into()) // a folder of clips, and a folder for the run
    })?;

    // Text first, as from a file (the name is for error messages), then fields, then a check of the whole.
    let mut config = RunConfig::parse(CONFIG, Path::new("examples/train.rs"), &["train.steps=50".to_owned()])?;
    config.data.path = data;
    config.run.out = out.into();
    config.diffusion.prediction = Prediction::X;
    config.train.batch = 2;
    config.train.lr = 1e-3;
    config.train.warmup = 10;
    config.parallel.ranks = 2; // threads of this process, which share each clip's tokens
    config.check()?;

    // The hook sees what each step measured, and may end the run.
    let trained = Trainer::new(config)
        .on_step(|step| {
            if step.step.is_multiple_of(10) {
                println!("step {:3}  loss {:.4}  {:6.0} tokens/s", step.step, step.loss, step.tokens_per_s);
            }
            ControlFlow::Continue(())
        })
        .run()?;
    println!("{} steps; the weights are in {}", trained.step, trained.checkpoint.display());
    Ok(())
}
