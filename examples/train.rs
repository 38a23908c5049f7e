//! Training from code: the config is made here, the run is an ordinary one, and its record is read at the end.
//!
//!     cargo run --release --example train -- datasets/bbb/train runs/example
//!
//! Afterwards `longreel sample runs/example -o clip.mp4 --count 1` works as for any run.

use longreel::config::{Prediction, RunConfig};
use longreel::observe::metrics;
use longreel::parallel::Launch;
use longreel::{Error, Result};
use std::path::Path;
use std::sync::atomic::AtomicBool;

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

    // Whoever sets this, a signal handler or another thread, ends the run after its step, with a checkpoint.
    let interrupted = AtomicBool::new(false);
    let record = config.run.out.join("metrics.jsonl");
    longreel::train::run(config, longreel::train::Start::New, &Launch::threads(), &interrupted)?;

    for step in metrics::read(&record)?.iter().filter(|r| r.step % 10 == 0) {
        println!("step {:3}  loss {:.4}  {:6.0} tokens/s", step.step, step.loss, step.tokens_per_s);
    }
    Ok(())
}
