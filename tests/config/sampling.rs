//! What `[sample]` leaves out: with text what Wan's networks are sampled by, without it what small networks are.

use super::{MINIMAL, parse};
use longreel::config::{SamplerKind, Sampling};

fn sampling(sets: &[&str]) -> Sampling {
    parse(MINIMAL, sets).unwrap().sampling()
}

#[test]
fn keys_left_out_follow_text_and_prompts() {
    let plain = Sampling { sampler: SamplerKind::Heun, steps: 25, count: 4, guidance: 1.0 };
    assert_eq!(sampling(&[]), plain);
    let wan = Sampling { sampler: SamplerKind::WanUnipc, steps: 25, count: 1, guidance: 1.0 };
    assert_eq!(sampling(&["text.from=encoder"]), wan);
    let one = Sampling { guidance: 5.0, ..wan };
    assert_eq!(sampling(&["text.from=encoder", "sample.prompts=[\"a fox\"]"]), one);
    let two = Sampling { count: 2, ..one };
    assert_eq!(sampling(&["text.from=encoder", "sample.prompts=[\"a fox\", \"waves\"]"]), two);
    for (sets, steps) in [(&[][..], 25), (&["text.from=encoder"], 50), (&["text.from=encoder", "sample.steps=7"], 7)] {
        assert_eq!(parse(MINIMAL, sets).unwrap().command_steps(), steps, "{sets:?}");
    }
}

#[test]
fn keys_that_are_written_win() {
    let written = ["sample.sampler=heun", "sample.steps=25", "sample.count=4", "sample.guidance=1", "sample.shift=1"];
    let text = ["text.from=encoder", "sample.prompts=[\"a fox\"]", "model.from=/nowhere"];
    let network = &MINIMAL[..MINIMAL.find("patch_size").unwrap()];
    let config = parse(network, &[&text[..], &written].concat()).unwrap();
    assert_eq!(config.sampling(), Sampling { sampler: SamplerKind::Heun, steps: 25, count: 4, guidance: 1.0 });
    assert_eq!(config.sampling_shift().unwrap(), 1.0); // the network is not looked at
    // Read from its own text again, too, where keys that are left out stay so.
    assert_eq!(parse(&config.to_toml().unwrap(), &[]).unwrap(), config);
    let bare = parse(network, &text).unwrap();
    let again = parse(&bare.to_toml().unwrap(), &[]).unwrap();
    assert_eq!((again.sample.steps, again.sample.shift), (None, None));
    let said = bare.sampling_shift().unwrap_err().to_string();
    assert!(said.contains("/nowhere"), "{said}");
    // A network without text, and one of the run's own, have no shift but the one that is written.
    assert_eq!(parse(MINIMAL, &["text.from=encoder"]).unwrap().sampling_shift().unwrap(), 1.0);
    assert_eq!(parse(network, &["model.from=/nowhere"]).unwrap().sampling_shift().unwrap(), 1.0);
    assert_eq!(parse(MINIMAL, &["sample.shift=auto"]).unwrap().sampling_shift().unwrap(), 0.0);
}
