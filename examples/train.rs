//! Training from code: a config made here, a run, and its record read back. `longreel train` does the same with a TOML file.
//!
//!     cargo run --release --example train        # 20 steps on the clips of datasets/bbb
//!     cargo run --release --example train 40     # goes on to 40

use longreel::config::{Crop, Data, Diffusion, Label, Model, Parallel, Prediction, Run, RunConfig, Sample, Train};
use longreel::train::checkpoint::RunFolder;
use longreel::{Error, Result, train};
use std::sync::atomic::AtomicBool;

fn main() -> Result<()> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init(); // where the log lines go
    let steps = match std::env::args().nth(1) {
        None => 20,
        Some(text) => text.parse().map_err(|e| Error::Invalid(format!("steps {text}: {e}")))?,
    };
    let config = RunConfig {
        run: Run { out: "runs/example".into(), seed: 0 },
        data: Data {
            path: "datasets/bbb/train".into(),
            heldout: None,
            frames: 8,
            height: 48,
            width: 80,
            stride: 3,
            fps: None,
            crop: Crop::Random,
            flip: true,
            label: Label::None,
            prefetch: 4,
        },
        model: Model {
            patch_size: [2, 8, 8], // 4 x 6 x 10 = 240 tokens a clip
            num_attention_heads: 4,
            attention_head_dim: 32,
            num_layers: 2,
            ffn_dim: 512,
            pos_embed: true,
            ..Model::default()
        },
        diffusion: Diffusion { prediction: Prediction::X, logit_mean: 0.8, ..Diffusion::default() },
        train: Train { steps, batch: 2, lr: 1e-3, warmup: 5, ..Train::default() },
        parallel: Parallel { ranks: 2, data: 1 }, // two threads, each with half of every clip's tokens
        sample: Sample::default(),
    };
    config.check()?; // what reading a file would have refused

    let folder = RunFolder::new(&config.run.out);
    let resume = folder.latest()?.is_some();
    let stop = AtomicBool::new(false); // set it from anywhere, and the run saves and ends after its step
    train::run(config, resume, 1, &stop)?; // one compute thread a rank

    let records = train::metrics::read(&folder.metrics())?;
    for record in records.iter().filter(|r| r.step % 5 == 0) {
        println!("step {:3}: loss {:.4}, {:.0} tokens/s", record.step, record.loss, record.tokens_per_s);
    }
    Ok(())
}
