//! Tests arithmetic without files: windows, resampling, patch rows.

use longreel::data::{FrameRegion, Frames, RowOrder, Windows, resample, token_grid, u8_to_unit};
use longreel::parallel::Split;
use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn windows_do_not_overlap_and_leave_less_than_one(n in 0usize..400, frames in 1usize..20, stride in 1usize..9) {
        let cut = Windows { frames, stride };
        let count = cut.count(n);
        prop_assert_eq!(count == 0, cut.missing(n) > 0);
        prop_assert_eq!(cut.count(n + cut.missing(n)), count.max(1));
        if cut.missing(n) > 0 {
            prop_assert_eq!(cut.count(n + cut.missing(n) - 1), 0);
        }
        let mut used = vec![0; n];
        for w in 0..count {
            for i in 0..frames {
                used[cut.frame(w, i)] += 1; // past the end: panics
            }
            prop_assert_eq!(cut.frame(w, frames - 1) - cut.frame(w, 0) + 1, cut.span());
        }
        prop_assert!(used.iter().all(|&u| u <= 1));
        prop_assert!(cut.frame(count, frames - 1) >= n, "one more window would fit");
    }

    #[test]
    fn resampling_takes_the_nearest_frame(
        gaps in prop::collection::vec(1u32..200, 0..60), start in -500i32..500, fps in 1u32..80
    ) {
        let mut ticks = vec![0];
        for gap in gaps {
            ticks.push(ticks[ticks.len() - 1] + gap as i64);
        }
        let times: Vec<f64> = ticks.iter().map(|&t| (t + start as i64) as f64 / 1000.0).collect();
        let picks = resample(&times, 1e-3, fps as f64);
        let last = *ticks.last().unwrap();
        // Exactly: grid time k / fps lies at most a tick past the last frame.
        let counts = [0, 1].map(|edge| (last + 1 - edge) * fps as i64 / 1000 + 1);
        prop_assert!(counts.contains(&(picks.len() as i64)));
        prop_assert!(picks.windows(2).all(|p| p[0] <= p[1]));
        for (k, &pick) in picks.iter().enumerate() {
            let distance = |i: usize| (ticks[i] as f64 - 1000.0 * k as f64 / fps as f64).abs();
            let best = (0..ticks.len()).map(distance).fold(f64::INFINITY, f64::min);
            prop_assert!(distance(pick as usize) <= best + 1.01 / fps as f64, "{k}: {pick}");
        }
    }

    #[test]
    fn rows_equal_the_plain_indexing(
        patch in [1usize..3, 1usize..5, 1usize..5], grid in [1usize..4, 1usize..5, 1usize..5],
        parts in 1usize..7, seed in any::<u64>()
    ) {
        let size: [usize; 3] = std::array::from_fn(|i| patch[i] * grid[i]);
        let whole = noise(size, seed);
        let total = grid.iter().product();
        let row = 3 * patch.iter().product::<usize>();
        for order in [RowOrder::ChannelFirst, RowOrder::ChannelLast] {
            let expected = plain_rows(&whole, patch, grid, order);
            for rank in 0..parts {
                let tokens = Split::new(total, parts).range(rank);
                let range = FrameRegion::of_tokens(tokens.clone(), grid, patch);
                prop_assert_eq!(&range, &plain_part(tokens.clone(), patch, grid));
                let held = part(&whole, &range);
                let mut rows = vec![9.0; tokens.len() * row];
                held.patch_rows(patch, tokens.clone(), order, &mut rows).unwrap();
                prop_assert_eq!(&rows, &expected[tokens.start * row..tokens.end * row]);

                let mut back = held.clone();
                back.data.fill(77);
                back.set_rows(patch, tokens.clone(), order, &rows).unwrap();
                let mut again = vec![0.0; rows.len()];
                back.patch_rows(patch, tokens, order, &mut again).unwrap();
                prop_assert_eq!(again, rows);
            }
        }
    }
}

fn noise([frames, height, width]: [usize; 3], seed: u64) -> Frames {
    let mut frames = Frames::black(&FrameRegion::whole(0..frames, height), height, width);
    let mut state = seed | 1;
    for value in &mut frames.data {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        *value = (state >> 56) as u8;
    }
    frames
}

fn part(whole: &Frames, range: &FrameRegion) -> Frames {
    let mut part = Frames::black(range, whole.height, whole.width);
    let line = whole.width * 3;
    let lines = range.frames.clone().flat_map(|f| range.lines.clone().map(move |y| f * whole.height + y));
    for (to, from) in part.data.chunks_exact_mut(line).zip(lines) {
        to.copy_from_slice(&whole.data[from * line..(from + 1) * line]);
    }
    part
}

/// Which frames and lines the tokens' pixels lie in: from the first to the last there is one of.
fn plain_part(tokens: std::ops::Range<usize>, patch: [usize; 3], [_, gh, gw]: [usize; 3]) -> FrameRegion {
    let (mut frames, mut lines) = (vec![], vec![]);
    for token in tokens {
        let (t, h) = (token / (gh * gw), token / gw % gh);
        frames.extend(t * patch[0]..(t + 1) * patch[0]);
        lines.extend(h * patch[1]..(h + 1) * patch[1]);
    }
    let (Some(&first), Some(&last)) = (frames.first(), frames.last()) else {
        return FrameRegion::whole(0..0, gh * patch[1]);
    };
    let several = last + 1 - first > patch[0];
    let lines = if several { 0..gh * patch[1] } else { lines[0]..lines[lines.len() - 1] + 1 };
    FrameRegion { frames: first..last + 1, lines }
}

/// All rows, value by value, straight from the definition.
fn plain_rows(clip: &Frames, [pt, ph, pw]: [usize; 3], [gt, gh, gw]: [usize; 3], order: RowOrder) -> Vec<f32> {
    let mut rows = Vec::new();
    let value = |f: usize, y: usize, x: usize, c: usize| {
        u8_to_unit(clip.data[((f * clip.height + y) * clip.width + x) * 3 + c])
    };
    for token in 0..gt * gh * gw {
        let (t, h, w) = (token / (gh * gw), token / gw % gh, token % gw);
        for i in 0..3 * pt * ph * pw {
            let (c, a, b, d) = match order {
                RowOrder::ChannelFirst => (i / (pt * ph * pw), i / (ph * pw) % pt, i / pw % ph, i % pw),
                RowOrder::ChannelLast => (i % 3, i / (3 * ph * pw) % pt, i / (3 * pw) % ph, i / 3 % pw),
            };
            rows.push(value(t * pt + a, h * ph + b, w * pw + d, c));
        }
    }
    rows
}

#[test]
fn u8_to_unit_covers_minus_one_to_one_and_round_trips() {
    assert_eq!((u8_to_unit(0), u8_to_unit(255)), (-1.0, 1.0));
    let mut frames = Frames::black(&FrameRegion::whole(0..1, 1), 1, 256);
    let rows: Vec<f32> = (0..=255u8).flat_map(|v| [u8_to_unit(v); 3]).collect();
    frames.set_rows([1, 1, 1], 0..256, RowOrder::ChannelLast, &rows).unwrap();
    assert_eq!(frames.data, (0..=255u8).flat_map(|v| [v; 3]).collect::<Vec<_>>());
    let wild = [-7.0, 3.0, f32::NAN];
    frames.set_rows([1, 1, 1], 0..1, RowOrder::ChannelFirst, &wild).unwrap();
    assert_eq!(frames.data[..3], [0, 255, 0]);
}

#[test]
fn patch_rows_outside_the_region_are_an_error() {
    let frames = noise([4, 8, 8], 1);
    let held = part(&frames, &FrameRegion::whole(2..4, 8));
    let mut rows = vec![0.0; 4 * 24];
    let mut ask = |patch, tokens, len: usize| {
        refusal!(Shape, held.patch_rows(patch, tokens, RowOrder::ChannelLast, &mut rows[..len]))
    };
    assert!(ask([2, 2, 2], 15..17, 48).contains("frames 0..4"));
    assert!(ask([2, 2, 2], 32..33, 24).contains("frames 4..6"));
    assert!(ask([2, 3, 2], 16..17, 36).contains("does not divide"));
    assert!(ask([0, 2, 2], 16..17, 24).contains("does not divide"));
    assert!(ask([2, 2, 2], 16..17, 23).contains("buffer of 23"));
    assert!(refusal!(Shape, token_grid([5, 8, 8], [2, 2, 2])).contains("frames 5"));
    assert_eq!(token_grid([4, 8, 6], [2, 4, 3]).unwrap(), [2, 2, 2]);
    assert_eq!(FrameRegion::of_tokens(5..5, [2, 2, 2], [2, 2, 2]), FrameRegion::whole(0..0, 4));
    assert_eq!(FrameRegion::of_tokens(3..5, [2, 2, 2], [2, 2, 2]), FrameRegion::whole(0..4, 4));
    held.patch_rows([2, 2, 2], 16..32, RowOrder::ChannelLast, &mut vec![0.0; 16 * 24]).unwrap();
    let line = part(&frames, &FrameRegion { frames: 2..4, lines: 2..4 });
    let error = refusal!(Shape, line.patch_rows([2, 2, 2], 23..25, RowOrder::ChannelLast, &mut [0.0; 48]));
    assert!(error.contains("lines 2..6") && error.contains("lines 2..4, are held"), "{error}");
}

#[test]
fn regions_are_placed_at_their_lines_and_frames() {
    let whole = noise([3, 6, 4], 9);
    let mut back = Frames::black(&FrameRegion { frames: 1..3, lines: 1..6 }, 6, 4);
    for (frames, lines) in [(0..2, 0..3), (1..3, 3..5), (2..3, 0..3), (1..3, 5..6)] {
        back.place(&part(&whole, &FrameRegion { frames, lines }));
    }
    assert_eq!(back, part(&whole, &FrameRegion { frames: 1..3, lines: 1..6 }));
}
