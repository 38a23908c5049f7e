//! Groups of tokens of one time: what is read from a time for each token, and which modulation each rank's rows have.

use longreel::model::TimeGroups;
use longreel::ops::Rows;

/// The modulation that the ops would take for each row of a rank, tile by tile.
fn modulations(groups: &TimeGroups, batch: usize, tokens: usize, local: std::ops::Range<usize>) -> Vec<usize> {
    let rows = groups.of_rows(batch, tokens, local.clone()).unwrap();
    let mut found = vec![];
    for run in rows.runs() {
        assert_eq!(run.start, found.len(), "runs are in order");
        for start in run.clone().step_by(2) {
            let count = 2.min(run.end - start);
            let of_tile = rows.modulations(Rows { start, tokens: local.len() });
            let runs = of_tile.runs(count, usize::MAX);
            assert_eq!(runs.len(), 1, "a tile has one modulation");
            found.extend(vec![runs[0].0; count]);
        }
    }
    found
}

#[test]
fn times_of_tokens_become_groups() {
    let times = [0.0, 0.0, 7.0, 7.0, 7.0, 3.0, 3.0, 3.0, 3.0, 3.0, 1.0, 2.0, 1.0, 5.0, 1.0];
    let (groups, distinct) = TimeGroups::of_timesteps(&times, 5);
    assert_eq!(groups.count, 3);
    assert_eq!(groups.of_token, [0, 0, 1, 1, 1, 0, 0, 0, 0, 0, 0, 1, 0, 2, 0]);
    assert_eq!(distinct, [0.0, 7.0, 0.0, 3.0, 3.0, 3.0, 1.0, 2.0, 5.0]);
    let all: Vec<usize> = groups.of_token.iter().enumerate().map(|(i, group)| i / 5 * groups.count + group).collect();
    assert_eq!(modulations(&groups, 3, 5, 0..5), all);
    for local in [0..2, 2..4, 4..5] {
        let wanted: Vec<usize> = (0..3).flat_map(|sample| all[sample * 5..][local.clone()].to_vec()).collect();
        assert_eq!(modulations(&groups, 3, 5, local.clone()), wanted, "{local:?}");
    }
}

#[test]
fn groups_that_do_not_fit_are_refused() {
    let groups = TimeGroups { count: 2, of_token: vec![0, 1, 1, 0, 1, 2] };
    assert!(refusal!(Shape, groups.of_rows(2, 3, 0..3)).contains("group 2"));
    assert!(refusal!(Shape, groups.of_rows(2, 4, 0..4)).contains("6 groups"));
}
