//! Clips to rows and back, against loops over the clip; and the fixed positions.

use super::*;
use longreel::model::{Embed, Patches};
use proptest::prelude::*;

/// For every number of a clip, in order: (its token, its place in an input row, its place in an output row).
fn places(p: &Patches) -> Vec<[usize; 3]> {
    let ([frames, height, width], [pt, ph, pw]) = (p.size, p.patch);
    let mut places = vec![];
    for c in 0..p.channels {
        for t in 0..frames {
            for h in 0..height {
                for w in 0..width {
                    let token = ((t / pt) * (height / ph) + h / ph) * (width / pw) + w / pw;
                    let within = ((t % pt) * ph + h % ph) * pw + w % pw;
                    places.push([token, c * pt * ph * pw + within, within * p.channels + c]);
                }
            }
        }
    }
    places
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..Default::default() })]
    #[test]
    fn rows_are_where_loops_put_them(
        channels in 1usize..4, grid in [1usize..4, 1..4, 1..4], patch in [1usize..4, 1..4, 1..4], cut in 0.0..1.0, end in 0.0..1.0,
    ) {
        let p = Patches { channels, size: std::array::from_fn(|i| grid[i] * patch[i]), patch };
        let tokens: usize = grid.iter().product();
        prop_assert_eq!((p.grid(), p.row()), (grid, channels * patch.iter().product::<usize>()));
        let last = (end * (tokens + 1) as f64) as usize;
        let range = (cut * (last + 1) as f64) as usize..last; // of some rank; may be empty
        let clip: Vec<f32> = (0..tokens * p.row()).map(|i| i as f32 + 1.0).collect();
        let rows = p.input_rows(&clip, range.clone());
        prop_assert_eq!(rows.len(), range.len() * p.row());
        let output: Vec<f32> = rows.iter().map(|v| -v).collect();
        let mut placed = clip.clone();
        p.place_output_rows(&output, range.clone(), &mut placed);
        for (i, [token, input, out]) in places(&p).into_iter().enumerate() {
            if range.contains(&token) {
                let row = (token - range.start) * p.row();
                prop_assert_eq!(rows[row + input], clip[i]);
                prop_assert_eq!(placed[i], output[row + out]);
            } else {
                prop_assert_eq!(placed[i], clip[i]);
            }
        }
    }
}

#[test]
fn positions_are_sines_and_cosines_along_three_axes() {
    let (with, grid) = (everything(), [3, 2, 4]);
    let model = random_model(&with);
    let plain = Embed::new(&model.units[0], &ModelConfig { pos_embed: false, ..with.clone() }, false).unwrap();
    let tokens = [5, 6, 23, 0]; // the end of a tile of one sample and the start of the next
    let rows = tensor(&[4, with.patch_in()], 7);
    let [a, b] = [&model.embed, &plain].map(|embed| values(&embed.forward(&rows, grid, &tokens).unwrap()));
    for (i, (a, b)) in a.iter().zip(&b).enumerate() {
        let (token, feature) = (tokens[i / 16], i % 16);
        // 16 features are 2 pairs for each axis (sines, then cosines), and 4 zeros.
        let at = [token / 8, token % 8 / 4, token % 4, 0][feature / 4] as f64;
        let angle = at * [1.0, 0.01][feature % 2];
        let expected = if feature >= 12 { 0.0 } else { [angle.sin(), angle.cos()][feature % 4 / 2] };
        assert!((a - b - expected).abs() < 1e-14, "token {token}, feature {feature}: {} not {expected}", a - b);
    }
}

#[test]
fn positions_change_the_output() {
    let [with, without] = [true, false].map(|pos_embed| {
        let config = ModelConfig { pos_embed, ..everything() };
        Task::new(&config, &[1, 3]).predict(&random_model(&config), 0).unwrap()
    });
    assert!(with.iter().zip(&without).all(|(a, b)| (a - b).abs() > 1e-9));
}
