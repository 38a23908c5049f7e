//! The optimizer's arithmetic: AdamW against PyTorch and an f64 reference, SGD, norms, clipping, EMA, learning rates.

#![allow(clippy::single_range_in_vec_init)] // a list of one range is meant

mod blockwise;
pub mod muon;

use longreel::config::{Schedule, Train};
use longreel::rng::{Key, Purpose};
use longreel::state::ema::ema_decay;
use longreel::state::optimizer::{AdamW, AdamWOptions, Shard, clip_coefficient, first_non_finite, norm_squared, sgd};
use longreel::train::schedule::LearningRate;
use std::ops::Range;

/// Parameters with AdamW's moments.
#[derive(Clone, Debug, PartialEq)]
struct State {
    params: Vec<f32>,
    m: Vec<f32>,
    v: Vec<f32>,
}

impl State {
    fn new(params: Vec<f32>) -> Self {
        let zeros = vec![0.0; params.len()];
        Self { params, m: zeros.clone(), v: zeros }
    }

    fn shard<'a>(&'a mut self, grads: &'a [f32]) -> Shard<'a> {
        Shard { params: &mut self.params, grads, m: &mut self.m, v: &mut self.v, average: None }
    }
}

fn adamw(betas: [f64; 2], eps: f64, weight_decay: f64) -> AdamW {
    AdamW::new(options!(AdamWOptions::default(); betas, eps, weight_decay)).unwrap()
}

fn normal(sample: u64, len: usize) -> Vec<f32> {
    let mut out = vec![0.0; len];
    Key { seed: 2, purpose: Purpose::Test, step: 0, sample }.stream(0).fill_normal(&mut out);
    out
}

fn pool<T: Send>(threads: usize, run: impl FnOnce() -> T + Send) -> T {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(run)
}

/// AdamW as the paper has it, on f64, without a thought for speed.
fn reference(
    steps: u64,
    lr: f64,
    [b1, b2]: [f64; 2],
    eps: f64,
    decay: impl Fn(usize) -> f64,
    params: &[f32],
    grad: impl Fn(u64) -> Vec<f32>,
) -> Vec<f64> {
    let mut state: Vec<[f64; 3]> = params.iter().map(|&p| [p.into(), 0.0, 0.0]).collect();
    for step in 1..=steps {
        for (i, ([p, m, v], g)) in state.iter_mut().zip(grad(step)).enumerate() {
            let g = f64::from(g);
            *m = b1 * *m + (1.0 - b1) * g;
            *v = b2 * *v + (1.0 - b2) * g * g;
            let m_hat = *m / (1.0 - b1.powi(step as i32));
            let v_hat = *v / (1.0 - b2.powi(step as i32));
            *p -= lr * (m_hat / (v_hat.sqrt() + eps) + decay(i) * *p);
        }
    }
    state.iter().map(|[p, ..]| *p).collect()
}

/// From PyTorch 2.11, in f64 (its f32 loses more than ours to a rounded 1 - lr * weight_decay):
///
///     p, q = (torch.tensor([0.5, -1.25, 2.0, 0.0], dtype=torch.float64, requires_grad=True) for _ in range(2))
///     groups = [dict(params=[p], weight_decay=0.1), dict(params=[q], weight_decay=0.0)]
///     opt = torch.optim.AdamW(groups, lr=0.01, betas=(0.9, 0.95), eps=1e-8, foreach=False)
///     for step in range(1, 51):
///         i = torch.arange(4, dtype=torch.float64)
///         grad = torch.cos(0.7 * step + 1.3 * i) * torch.tensor([1.0, 0.1, 3.0, 1e-4])
///         p.grad, q.grad = (grad.float().double() for _ in range(2))
///         opt.step()
///         if step in (1, 2, 50): print(step, p.tolist(), q.tolist())
#[test]
fn adamw_is_pytorch_s() {
    let golden: [(u64, [f64; 8]); 3] = [
        (
            1,
            [
                0.489500000131,
                -1.238750002403,
                2.007999999966,
                0.009991091514,
                0.490000000131,
                -1.240000002403,
                2.009999999966,
                0.009991091514,
            ],
        ),
        (
            2,
            [
                0.480760053056,
                -1.228027640881,
                2.015735319476,
                0.004084693837,
                0.481749553056,
                -1.230516390883,
                2.019743319476,
                0.004094684929,
            ],
        ),
        (
            50,
            [
                0.474749170408,
                -1.130680333052,
                1.927495531029,
                -0.035727309088,
                0.499021094702,
                -1.189137033838,
                2.026215304336,
                -0.037185978423,
            ],
        ),
    ];
    let optimizer = adamw([0.9, 0.95], 1e-8, 0.1);
    let start = [0.5, -1.25, 2.0, 0.0];
    let mut state = State::new([start, start].concat());
    for step in 1..=50 {
        let grad = |(i, size): (usize, f64)| ((0.7 * step as f64 + 1.3 * i as f64).cos() * size) as f32;
        let grads: Vec<f32> = [1.0, 0.1, 3.0, 1e-4].into_iter().enumerate().map(grad).collect();
        optimizer.update(step, 0.01, 1.0, state.shard(&[&grads[..], &grads].concat()), &[4..8]).unwrap();
        if let Some((_, want)) = golden.iter().find(|(at, _)| *at == step) {
            for (got, want) in state.params.iter().zip(want) {
                assert!((f64::from(*got) - want).abs() < 6e-7, "step {step}: {got} is not {want}");
            }
        }
    }
}

#[test]
fn adamw_follows_the_paper_over_fifty_steps() {
    // Several chunks, with ranges that cross, touch and fill chunk borders.
    let n = 40_000;
    let no_decay = [3..7, 7..9, 100..100, 16_000..16_500, 32_767..32_769, 39_999..40_000];
    let decays = |i: usize| if no_decay.iter().any(|range: &Range<usize>| range.contains(&i)) { 0.0 } else { 0.1 };
    let grad = |step: u64| normal(step, n);
    let params = normal(1000, n);
    let mut state = State::new(params.clone());
    let optimizer = adamw([0.9, 0.99], 1e-8, 0.1);
    for step in 1..=50 {
        // The gradient times 1, 4 or 16, scaled back. (AdamW would not notice one factor for all steps.)
        let factor = 4f32.powi(step as i32 % 3);
        let grads: Vec<f32> = grad(step).iter().map(|g| factor * g).collect();
        optimizer.update(step, 3e-3, 1.0 / f64::from(factor), state.shard(&grads), &no_decay).unwrap();
    }
    let want = reference(50, 3e-3, [0.9, 0.99], 1e-8, decays, &params, grad);
    for (i, (got, want)) in state.params.iter().zip(want).enumerate() {
        assert!((f64::from(*got) - want).abs() < 3e-6, "{i}: {got} is not {want}");
    }
}

#[test]
fn a_step_counts_from_one_and_has_both_bias_corrections() {
    // Whatever the size of its gradient, a parameter moves by lr in the first step.
    let mut state = State::new(vec![0.0; 3]);
    adamw([0.9, 0.999], 1e-12, 0.5).update(1, 0.125, 1.0, state.shard(&[1e-3, -1.0, 1e3]), &[]).unwrap();
    for (got, want) in state.params.iter().zip([-0.125, 0.125, -0.125]) {
        assert!((got - want).abs() < 1e-6, "{got} is not {want}");
    }
    // A resumed run goes on with the step's own number.
    let mut late = State::new(vec![0.0; 1]);
    adamw([0.9, 0.999], 1e-12, 0.0).update(100, 0.125, 1.0, late.shard(&[2.0]), &[]).unwrap();
    let want = -0.125 * (0.1 / (1.0 - 0.9f64.powi(100))) / (0.001 / (1.0 - 0.999f64.powi(100))).sqrt();
    assert!((f64::from(late.params[0]) - want).abs() < 1e-6);
}

#[test]
fn zero_gradients_only_decay() {
    let mut state = State::new(vec![2.0, 2.0]);
    adamw([0.9, 0.999], 1e-8, 0.5).update(1, 0.1, 1.0, state.shard(&[0.0, 0.0]), &[1..2]).unwrap();
    assert_eq!(state.params, [1.9, 2.0]);
    // A shard of nothing, as where there are more ranks than parameters.
    adamw([0.9, 0.999], 1e-8, 0.5).update(1, 0.1, 1.0, State::new(vec![]).shard(&[]), &[]).unwrap();
}

#[test]
fn results_do_not_depend_on_threads_or_shards() {
    let n = 50_001;
    let (params, grads) = (normal(0, n), normal(1, n));
    let optimizer = adamw([0.9, 0.95], 1e-8, 0.1);
    let no_decay = [10..20_000, 33_000..33_001];
    let run = || {
        let mut state = State::new(params.clone());
        let mut average = params.clone();
        for step in 1..=3 {
            let shard = Shard { average: Some((0.9, &mut average)), ..state.shard(&grads) };
            optimizer.update(step, 1e-2, 0.7, shard, &no_decay).unwrap();
        }
        sgd(0.1, 0.5, &mut average, &grads).unwrap();
        (state, average, norm_squared(&grads), first_non_finite(&grads))
    };
    let first = pool(1, run);
    for threads in [2, 3] {
        assert!(pool(threads, run) == first, "{threads} threads");
    }
    // Two shards of a buffer, cut within a range.
    let (mut state, cut) = (State::new(params.clone()), 12_345);
    for step in 1..=3 {
        let (params, m, v) = (state.params.split_at_mut(cut), state.m.split_at_mut(cut), state.v.split_at_mut(cut));
        let (low, high) = grads.split_at(cut);
        let shard = Shard { params: params.0, grads: low, m: m.0, v: v.0, average: None };
        optimizer.update(step, 1e-2, 0.7, shard, &[10..cut]).unwrap();
        let shard = Shard { params: params.1, grads: high, m: m.1, v: v.1, average: None };
        optimizer.update(step, 1e-2, 0.7, shard, &[0..20_000 - cut, 33_000 - cut..33_001 - cut]).unwrap();
    }
    assert!(state == first.0, "shards");
}

#[test]
fn sgd_goes_down_the_scaled_gradient() {
    let mut params = [1.0, -2.0];
    sgd(0.5, 0.25, &mut params, &[8.0, -4.0]).unwrap();
    assert_eq!(params, [0.0, -1.5]);
    assert!(refusal!(Shape, sgd(0.5, 1.0, &mut params, &[1.0])).contains("2 parameters, 1 gradients"));
}

#[test]
fn norms_are_exact_where_f32_would_overflow() {
    assert_eq!(norm_squared(&[]), 0.0);
    assert_eq!(norm_squared(&[3.0, -4.0]), 25.0);
    assert!((norm_squared(&[3e38; 20]) / (20.0 * f64::from(3e38f32).powi(2)) - 1.0).abs() < 1e-15);
    let values = normal(0, 100_003);
    let plain: f64 = values.iter().map(|&value| f64::from(value).powi(2)).sum();
    assert!((norm_squared(&values) / plain - 1.0).abs() < 1e-13);
    let parts = norm_squared(&values[..777]) + norm_squared(&values[777..]);
    assert!((parts / plain - 1.0).abs() < 1e-13);
    assert!(norm_squared(&[1.0, f32::NAN]).is_nan() && norm_squared(&[f32::NEG_INFINITY]).is_infinite());
}

#[test]
fn clipping_brings_the_norm_to_its_maximum_only_when_above() {
    assert_eq!(clip_coefficient(0.5, 1.0), 1.0);
    assert_eq!(clip_coefficient(1.0, 1.0), 1.0);
    assert_eq!(clip_coefficient(8.0, 2.0), 0.25);
    assert_eq!(clip_coefficient(0.0, 1.0), 1.0);
    assert_eq!(clip_coefficient(1e9, 0.0), 1.0);
    assert!(clip_coefficient(f64::NAN, 1.0).is_nan());
}

#[test]
fn the_first_bad_gradient_is_found() {
    let mut values = normal(0, 70_000);
    assert_eq!(first_non_finite(&values), None);
    assert_eq!(first_non_finite(&[]), None);
    values[69_999] = f32::NAN;
    assert_eq!(first_non_finite(&values), Some(69_999));
    values[20_000] = f32::INFINITY;
    values[20_001] = f32::NAN;
    assert_eq!(pool(3, || first_non_finite(&values)), Some(20_000));
    values[0] = f32::NEG_INFINITY;
    assert_eq!(first_non_finite(&values), Some(0));
}

#[test]
fn the_average_warms_up_and_follows() {
    assert_eq!(ema_decay(0.999, 0), 0.1);
    assert_eq!(ema_decay(0.999, 10), 11.0 / 20.0);
    assert_eq!(ema_decay(0.5, 10), 0.5);
    assert_eq!(ema_decay(0.999, 1_000_000), 0.999);
    // A step of length 0 moves the average alone.
    let follow = |decay: f64, average: &mut [f32], params: &[f32]| {
        let (mut state, grads) = (State::new(params.to_vec()), vec![0.0; params.len()]);
        let shard = Shard { average: Some((decay, average)), ..state.shard(&grads) };
        adamw([0.9, 0.999], 1e-8, 0.0).update(1, 0.0, 1.0, shard, &[])
    };
    let mut average = [0.0, 2.0, 1.0];
    follow(0.75, &mut average, &[4.0, 2.0, -1.0]).unwrap();
    assert_eq!(average, [1.0, 2.0, 0.5]);
    // Twenty updates against the definition, in f64.
    let (mut average, mut wide) = (normal(0, 100), normal(0, 100).into_iter().map(f64::from).collect::<Vec<_>>());
    for n in 0..20 {
        let (params, decay) = (normal(n + 1, 100), ema_decay(0.999, n));
        follow(decay, &mut average, &params).unwrap();
        for (wide, param) in wide.iter_mut().zip(&params) {
            *wide = decay * *wide + (1.0 - decay) * f64::from(*param);
        }
    }
    assert!(average.iter().zip(&wide).all(|(a, b)| (f64::from(*a) - b).abs() < 1e-6));
    assert!(refusal!(Shape, follow(0.9, &mut [0.0], &[])).contains("1 values for 0"));
}

#[test]
fn learning_rates_warm_up_then_stay_or_fall() {
    let rate = |warmup, steps, schedule| {
        let config = Train { lr: 0.5, warmup, steps, schedule, ..Default::default() };
        let rate = LearningRate::new(&config).unwrap();
        move |step| rate.at(step)
    };
    let constant = rate(4, 100, Schedule::Constant);
    assert_eq!([0, 1, 3, 4, 99, 1000].map(constant), [0.125, 0.25, 0.5, 0.5, 0.5, 0.5]);
    let cosine = rate(4, 12, Schedule::Cosine);
    assert_eq!([0, 3, 4].map(&cosine), [0.125, 0.5, 0.5]);
    for (step, want) in [(6, 0.25 * (1.0 + 0.5f64.sqrt())), (8, 0.25), (10, 0.25 * (1.0 - 0.5f64.sqrt())), (12, 0.0)] {
        assert!((cosine(step) - want).abs() < 1e-15, "step {step}: {}", cosine(step));
    }
    assert!((0..12).all(|step| cosine(step) > 0.0));
    assert_eq!([0, 1].map(rate(0, 0, Schedule::Cosine)), [0.0, 0.0]);
    assert_eq!(rate(0, 10, Schedule::Constant)(0), 0.5);
    assert_eq!([7, 8, 9].map(rate(8, 4, Schedule::Cosine)), [0.5, 0.0, 0.0]);
    let linear = rate(4, 12, Schedule::Linear);
    assert_eq!([0, 3, 4, 8, 11, 12, 99].map(linear), [0.125, 0.5, 0.5, 0.25, 0.0625, 0.0, 0.0]);
    let wsd = |decay, warmup, steps| {
        let config = Train { lr: 0.5, warmup, steps, schedule: Schedule::Wsd, decay, ..Default::default() };
        let rate = LearningRate::new(&config).unwrap();
        move |step| rate.at(step)
    };
    let falling = [0, 4, 79, 80, 90, 99, 100].map(wsd(0.2, 2, 100));
    let wanted = [0.25, 0.5, 0.5, 0.5, 0.25, 0.025, 0.0];
    assert!(falling.iter().zip(wanted).all(|(got, want)| (got - want).abs() < 1e-15), "{falling:?}");
    assert_eq!([3, 4, 8, 12].map(wsd(1.0, 4, 12)), [0.5, 0.5, 0.25, 0.0], "decay begins after warm-up at the earliest");
    for lr in [-1.0, f64::NAN, f64::INFINITY] {
        assert!(refusal!(Config, LearningRate::new(&Train { lr, ..Default::default() })).contains("lr ="));
    }
}

#[test]
fn what_makes_no_sense_is_refused() {
    let refuse = |options: AdamWOptions| refusal!(Config, AdamW::new(options));
    for betas in [[1.0, 0.9], [0.9, -0.1], [f64::NAN, 0.9]] {
        assert!(refuse(options!(AdamWOptions::default(); betas)).contains("betas"));
    }
    for eps in [0.0, -1e-8, f64::NAN] {
        assert!(refuse(options!(AdamWOptions::default(); eps)).contains("eps"));
    }
    for weight_decay in [-0.1, f64::NAN, f64::INFINITY] {
        assert!(refuse(options!(AdamWOptions::default(); weight_decay)).contains("weight_decay"));
    }
    let optimizer = adamw([0.9, 0.95], 1e-8, 0.0);
    let mut state = State::new(vec![0.0; 5]);
    assert!(refusal!(Shape, optimizer.update(1, 0.1, 1.0, state.shard(&[0.0; 4]), &[])).contains("4 gradients"));
    assert!(refusal!(Shape, optimizer.update(0, 0.1, 1.0, state.shard(&[0.0; 5]), &[])).contains("count from 1"));
    for ranges in [vec![3..6], vec![2..4, 3..5], vec![3..4, 0..1], vec![Range { start: 4, end: 2 }]] {
        let error = refusal!(Shape, optimizer.update(1, 0.1, 1.0, state.shard(&[0.0; 5]), &ranges));
        assert!(error.contains("without decay"), "{ranges:?}: {error}");
    }
    state.m.pop();
    assert!(refusal!(Shape, optimizer.update(1, 0.1, 1.0, state.shard(&[0.0; 5]), &[])).contains("moments of 4"));
}
