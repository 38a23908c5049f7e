//! AdamW with moments of eight bits: each step against AdamW in f64 on the moments that the words hold, each word
//! against the nearest fraction, and the same bits wherever shards begin.

use super::{State, adamw, normal, pool};
use longreel::state::optimizer::Shard;
use longreel::state::optimizer::blockwise::{BLOCK, Moment, words};

/// Fractions of the largest value, from their definition: decade i has 2^i, evenly spaced up to its end.
fn fractions(decades: i32) -> Vec<f64> {
    let decade = |i: i32| {
        (1..=1 << i).map(move |j| 10f64.powi(i + 1 - decades) * (0.1 + 0.9 * f64::from(j) / f64::from(1 << i)))
    };
    std::iter::once(0.0).chain((0..decades).flat_map(decade)).collect()
}

/// What a block of 256 values becomes: the nearest fractions of its largest; `above`: none above 0 becomes 0.
fn rounded(values: &[f64], fractions: &[f64], above: bool) -> Vec<f64> {
    let blocks = values.chunks(BLOCK).flat_map(|block| {
        let largest = block.iter().fold(0f64, |most, value| most.max(value.abs()));
        block.iter().map(move |value| {
            let off = |fraction: &&f64| (value.abs() / largest - **fraction).abs();
            let nearest = fractions.iter().min_by(|a, b| off(a).total_cmp(&off(b))).unwrap();
            let nearest = if above && *value != 0.0 { nearest.max(fractions[1]) } else { *nearest };
            if largest < 1.8e-12 { 0.0 } else { value.signum() * nearest * largest }
        })
    });
    blocks.collect()
}

fn read(moment: Moment, words: &[f32], n: usize) -> Vec<f32> {
    let mut values = vec![0.0; n];
    moment.read(words, &mut values);
    values
}

/// Parameters with words in the moments' place.
fn coded(params: Vec<f32>) -> State {
    let held = words(params.len());
    State { params, m: vec![0.0; held], v: vec![0.0; held] }
}

/// Gradients of very different sizes: among neighbours, and from block to block.
fn gradient(step: u64, n: usize) -> Vec<f32> {
    let scale = |i: usize| 10f32.powi(-((i / 300 % 4) as i32) - (i % 3) as i32);
    normal(40 + step, n).into_iter().enumerate().map(|(i, g)| if i % 97 == 0 { 0.0 } else { g * scale(i) }).collect()
}

#[test]
fn each_step_is_that_of_adamw_on_the_moments_that_the_words_hold() {
    let (n, lr, [b1, b2], eps, decay) = (1003, 1e-2, [0.9, 0.95], 1e-8, 0.1);
    let optimizer = adamw([b1, b2], eps, decay);
    let mut state = coded(normal(1, n));
    let (signed, unsigned) = (fractions(7), fractions(8));
    let mut moved = 0;
    for step in 1..=8u64 {
        let grads = gradient(step, n);
        let (before, m, v) = (state.params.clone(), read(Moment::Mean, &state.m, n), read(Moment::Square, &state.v, n));
        optimizer.update_in_blocks(step, lr, 0.5, state.shard(&grads), &[10..20]).unwrap();
        let (mut means, mut roots) = (vec![], vec![]);
        for i in 0..n {
            let g = 0.5 * f64::from(grads[i]);
            let m = b1 * f64::from(m[i]) + (1.0 - b1) * g;
            let v = b2 * f64::from(v[i]) + (1.0 - b2) * g * g;
            let bias = |beta: f64| 1.0 - beta.powi(step as i32);
            let rate = if (10..20).contains(&i) { 0.0 } else { decay };
            let p = f64::from(before[i]);
            let want = p - lr * (m / bias(b1) / ((v / bias(b2)).sqrt() + eps) + rate * p);
            assert!((f64::from(state.params[i]) - want).abs() < 2e-7 * (1.0 + want.abs()), "step {step}, {i}");
            means.push(m);
            roots.push(v.sqrt());
        }
        // A value halfway between two fractions may take the other in f32.
        for (held, exact, fractions, above) in [
            (read(Moment::Mean, &state.m, n), means, &signed, false),
            (read(Moment::Square, &state.v, n).into_iter().map(f32::sqrt).collect(), roots, &unsigned, true),
        ] {
            let others = held
                .iter()
                .zip(rounded(&exact, fractions, above))
                .filter(|(held, want)| (f64::from(**held) - want).abs() > 1e-6 * want.abs());
            assert!(others.count() <= 1, "step {step}");
            moved += held
                .iter()
                .zip(&exact)
                .filter(|(held, exact)| (f64::from(**held) - **exact).abs() > 1e-4 * exact.abs())
                .count();
        }
    }
    assert!(moved > 4000, "rounding shows: {moved}");
}

/// Against f32 moments, over many steps: the way is nearly the same.
#[test]
fn many_steps_go_where_adamw_goes() {
    let n = 4 * BLOCK;
    let optimizer = adamw([0.9, 0.95], 1e-8, 0.0);
    let (start, mut eight) = (normal(1, n), coded(normal(1, n)));
    let mut full = State::new(start.clone());
    let mean = gradient(99, n);
    for step in 1..=100 {
        let grads: Vec<f32> = gradient(step, n).iter().zip(&mean).map(|(g, m)| g + m).collect();
        optimizer.update_in_blocks(step, 1e-3, 1.0, eight.shard(&grads), &[]).unwrap();
        optimizer.update(step, 1e-3, 1.0, full.shard(&grads), &[]).unwrap();
    }
    let norm = |values: &mut dyn Iterator<Item = f32>| values.map(|v| f64::from(v).powi(2)).sum::<f64>().sqrt();
    let way = norm(&mut full.params.iter().zip(&start).map(|(a, b)| a - b));
    let off = norm(&mut full.params.iter().zip(&eight.params).map(|(a, b)| a - b));
    assert!(off < 0.1 * way && off > 1e-6 * way, "{off} of {way}");
}

/// Blocks begin where shards of whole blocks do, for any number of threads and shards, average included.
#[test]
fn shards_of_whole_blocks_give_the_same_bits() {
    let n = 70 * BLOCK + 77;
    let optimizer = adamw([0.9, 0.999], 1e-8, 0.01);
    let run = |cuts: &[usize], threads: usize| {
        pool(threads, || {
            let bounds = [&[0], cuts, &[n]].concat();
            let parts = bounds.windows(2).flat_map(|part| {
                let (first, last) = (part[0], part[1]);
                let mut state = coded(normal(1, n)[first..last].to_vec());
                let mut average = state.params.clone();
                for step in 1..=3 {
                    let grads = gradient(step, n)[first..last].to_vec();
                    let shard = Shard { average: Some((0.5, &mut average)), ..state.shard(&grads) };
                    optimizer.update_in_blocks(step, 1e-2, 1.0, shard, &[]).unwrap();
                }
                let len = last - first;
                let moments = read(Moment::Mean, &state.m, len).into_iter().zip(read(Moment::Square, &state.v, len));
                let all = state.params.into_iter().zip(average).zip(moments).collect::<Vec<_>>();
                all.into_iter().map(|((p, a), (m, v))| [p, a, m, v].map(f32::to_bits))
            });
            parts.collect::<Vec<_>>()
        })
    };
    let whole = run(&[], 1);
    assert!(whole == run(&[], 3) && whole == run(&[BLOCK, 65 * BLOCK], 2) && whole == run(&[33 * BLOCK], 1));
}

#[test]
fn words_of_another_length_are_refused() {
    let (mut params, grads) = ([0.0; 5], [0.0; 5]);
    let mut state = coded(vec![0.0; 300]);
    let shard = Shard { params: &mut params, grads: &grads, m: &mut state.m, v: &mut state.v, average: None };
    let error = refusal!(Shape, adamw([0.9, 0.95], 1e-8, 0.0).update_in_blocks(1, 0.1, 1.0, shard, &[]));
    assert!(error.contains("5 parameters") && error.contains("words of 77"), "{error}");
    assert_eq!([0, 1, 4, 5, 256, 257].map(words), [0, 2, 2, 3, 65, 67]);
}
