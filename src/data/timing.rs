//! When frames are shown, where a file's timestamps repeat, fall, jump or are missing.
//!
//! Pure arithmetic. Timestamps that increase stay as they are; what does not is mended as FFmpeg's command does it, by
//! the smallest shift: to one unit after the frame before.

/// Times for frames with `stamps`, in the order of display, strictly increasing; `second` is how many units a second
/// has. None if no frame has a timestamp.
///
/// - A stamp that is not above the one before is set to one unit above it.
/// - One that falls by a second or more begins a new count (a recording that starts again, a counter that wraps): it
///   and all behind it move to where the file goes on at its usual pace.
/// - One above or below both its neighbours, which are in order themselves, counts as missing.
/// - Missing ones lie at even distances between their neighbours.
pub fn increasing(stamps: &[Option<i64>], second: f64) -> Option<Vec<i64>> {
    let mut known: Vec<(usize, i64)> = (0..).zip(stamps).filter_map(|(i, stamp)| stamp.map(|t| (i, t))).collect();
    let stray = |i: usize| {
        let (before, time, after) = (known[i - 1].1, known[i].1, known[i + 1].1);
        before < after && (time < before || time > after)
    };
    let strays: Vec<usize> = (1..known.len().saturating_sub(1)).filter(|&i| stray(i)).map(|i| known[i].0).collect();
    known.retain(|(i, _)| strays.binary_search(i).is_err());
    let pace = pace(&known);

    let (mut shift, mut last) = (0, None::<(usize, i64)>);
    for (i, time) in &mut known {
        let mut moved = time.saturating_add(shift);
        if let Some((j, before)) = last {
            let frames = (*i - j) as i64;
            if moved < before + frames {
                let restart = (before - moved) as f64 >= second;
                let mended = before.saturating_add(if restart { pace.saturating_mul(frames) } else { frames });
                if restart {
                    shift += mended - moved;
                }
                moved = mended;
            }
        }
        *time = moved;
        last = Some((*i, moved));
    }
    let (&(first, start), &(end, stop)) = (known.first()?, known.last()?);
    let mut times: Vec<i64> = (0..first).map(|i| start - (first - i) as i64 * pace).collect();
    for pair in known.windows(2) {
        let ((i, from), (j, to)) = (pair[0], pair[1]);
        times.extend((i..j).map(|n| from + ((to - from) as i128 * (n - i) as i128 / (j - i) as i128) as i64));
    }
    times.push(stop);
    times.extend((end + 1..stamps.len()).map(|i| stop + (i - end) as i64 * pace));
    Some(times)
}

/// The usual distance of two frames: the median of those that increase, at least one unit.
fn pace(known: &[(usize, i64)]) -> i64 {
    let distance = |pair: &[(usize, i64)]| pair[1].1.saturating_sub(pair[0].1) / (pair[1].0 - pair[0].0) as i64;
    let mut distances: Vec<i64> = known.windows(2).map(distance).filter(|&d| d > 0).collect();
    let middle = distances.len() / 2;
    if distances.is_empty() { 1 } else { *distances.select_nth_unstable(middle).1 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(stamps: &[i64]) -> Vec<i64> {
        increasing(&stamps.iter().map(|&t| Some(t)).collect::<Vec<_>>(), 1000.0).unwrap()
    }

    #[test]
    fn increasing_stamps_stay() {
        assert_eq!(all(&[-7, 0, 1, 50, 90_000]), [-7, 0, 1, 50, 90_000]);
        assert_eq!(all(&[5]), [5]);
        assert_eq!(increasing(&[], 1000.0), None);
        assert_eq!(increasing(&[None, None], 1000.0), None);
    }

    #[test]
    fn repeated_and_falling_stamps_are_nudged_and_the_rest_stays() {
        assert_eq!(all(&[0, 40, 40, 120]), [0, 40, 41, 120]);
        assert_eq!(all(&[0, 40, 40, 40, 160]), [0, 40, 41, 42, 160]);
        assert_eq!(all(&[0, 40, 80, 30, 70, 200]), [0, 40, 80, 81, 82, 200]);
        assert_eq!(all(&[3, 3]), [3, 4]);
    }

    #[test]
    fn a_lone_stray_does_not_move_what_follows() {
        assert_eq!(all(&[0, 40, 900_000, 120, 160]), [0, 40, 80, 120, 160]);
        assert_eq!(all(&[9000, 9040, 0, 9120, 9160]), [9000, 9040, 9080, 9120, 9160]);
    }

    #[test]
    fn a_count_that_starts_again_goes_on_at_the_usual_pace() {
        assert_eq!(all(&[9000, 9040, 9080, 0, 40, 80]), [9000, 9040, 9080, 9120, 9160, 9200]);
    }

    #[test]
    fn missing_stamps_lie_between_their_neighbours() {
        let stamps = [None, Some(40), None, None, Some(160), None, None];
        assert_eq!(increasing(&stamps, 1000.0).unwrap(), [0, 40, 80, 120, 160, 200, 240]);
        // More frames than units between two stamps: still strictly increasing.
        assert_eq!(increasing(&[Some(0), None, None, Some(1)], 1000.0).unwrap(), [0, 1, 2, 3]);
    }
}
