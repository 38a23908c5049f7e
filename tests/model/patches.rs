//! Clips to rows of patches and back, against a walk over the clip's own numbers.

use longreel::model::Patches;
use proptest::prelude::*;

/// Channels, patch and grid of a clip, and a run of its tokens.
fn cuts() -> impl Strategy<Value = (Patches, std::ops::Range<usize>)> {
    let axes = || prop::array::uniform3(1usize..5);
    (1usize..4, axes(), axes()).prop_flat_map(|(channels, patch, grid)| {
        let size = std::array::from_fn(|axis| patch[axis] * grid[axis]);
        let tokens: usize = grid.iter().product();
        (0..=tokens, 0..=tokens).prop_map(move |(a, b)| (Patches { channels, size, patch }, a.min(b)..a.max(b)))
    })
}

/// Every number of the clip, in order: (index in the clip, token, channel, place within the patch).
fn walk(p: &Patches) -> Vec<(usize, usize, usize, usize)> {
    let mut all = vec![];
    let (mut index, [pt, ph, pw]) = (0, p.patch);
    let (gh, gw) = (p.size[1] / ph, p.size[2] / pw);
    for c in 0..p.channels {
        for t in 0..p.size[0] {
            for h in 0..p.size[1] {
                for w in 0..p.size[2] {
                    let token = (t / pt * gh + h / ph) * gw + w / pw;
                    all.push((index, token, c, (t % pt * ph + h % ph) * pw + w % pw));
                    index += 1;
                }
            }
        }
    }
    all
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// The network takes (C, pt, ph, pw).
    #[test]
    fn input_rows_hold_channels_first((p, tokens) in cuts()) {
        let walk = walk(&p);
        let clip: Vec<f32> = (0..walk.len()).map(|i| i as f32).collect();
        let pixels = p.row() / p.channels;
        let mut want = vec![-1.0; tokens.len() * p.row()];
        for (index, token, c, place) in walk {
            if tokens.contains(&token) {
                want[(token - tokens.start) * p.row() + c * pixels + place] = index as f32;
            }
        }
        prop_assert_eq!(p.input_rows(&clip, tokens), want);
    }

    /// It gives (pt, ph, pw, C); what other tokens hold stays.
    #[test]
    fn output_rows_hold_channels_last((p, tokens) in cuts()) {
        let walk = walk(&p);
        let rows: Vec<f32> = (0..tokens.len() * p.row()).map(|i| i as f32).collect();
        let mut clip = vec![-1.0; walk.len()];
        p.place_output_rows(&rows, tokens.clone(), &mut clip);
        for (index, token, c, place) in walk {
            let want = match tokens.contains(&token) {
                true => rows[(token - tokens.start) * p.row() + place * p.channels + c],
                false => -1.0,
            };
            prop_assert_eq!(clip[index], want);
        }
    }

    #[test]
    fn grid_and_row_count_the_clip((p, _) in cuts()) {
        prop_assert_eq!(p.grid().iter().product::<usize>() * p.row(), p.channels * p.size.iter().product::<usize>());
    }
}
