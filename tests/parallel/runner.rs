//! The runner of ranks, and the split of counts over them.

use super::*;
use longreel::parallel::Split;
use proptest::prelude::*;
use std::io::Write;
use std::sync::{Arc, Mutex};

#[test]
fn ranks_are_named_threads_in_pools_of_their_own_and_answer_in_order() {
    for (ranks, threads) in [(1, 1), (1, 3), (3, 2)] {
        let results = run_threads(ranks, threads, move |comm| {
            std::thread::sleep(Duration::from_millis(5 * (ranks - comm.rank()) as u64)); // the last is the first to end
            let name = std::thread::current().name().map(str::to_owned);
            let other = rayon::join(|| (), || std::thread::current().name().map(str::to_owned)).1;
            Ok((comm.rank(), comm.size(), rayon::current_num_threads(), name, other))
        });
        for (r, result) in results.unwrap().into_iter().enumerate() {
            let name = Some(format!("rank-{r}"));
            assert_eq!(result, (r, ranks, threads, name.clone(), name));
        }
    }
    assert!(refusal!(Config, run_threads(0, 1, |_| Ok(()))).contains("0 ranks"));
    assert!(refusal!(Config, run_threads(1, 0, |_| Ok(()))).contains("0 threads"));
}

#[test]
fn rank_threads_have_deep_stacks() {
    fn deep(n: usize) -> u8 {
        let frame = std::hint::black_box([n as u8; 1024]);
        if n == 0 { frame[0] } else { deep(n - 1).wrapping_add(frame[n % 1024]) }
    }
    run_threads(1, 2, |_| {
        let (a, b) = rayon::join(|| deep(30_000), || deep(30_000)); // 30 MiB, on the pool's threads
        assert_eq!(a, b);
        Ok(())
    })
    .unwrap();
}

#[test]
fn log_lines_carry_the_rank() {
    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);
    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let lines = Lines::default();
    let writer = lines.clone();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
    let dispatch = tracing::Dispatch::new(subscriber);
    tracing::dispatcher::with_default(&dispatch, || {
        longreel::parallel::run_threads(2, 1, |comm| {
            tracing::dispatcher::with_default(&dispatch, || tracing::warn!("here is {}", comm.rank()));
            Ok(())
        })
        .unwrap();
    });
    let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
    for r in 0..2 {
        assert!(
            text.lines().any(|l| l.contains(&format!("rank{{rank={r}}}")) && l.contains(&format!("here is {r}"))),
            "{text}"
        );
    }
}

proptest! {
    #[test]
    fn a_split_covers_all_in_order_as_evenly_as_can_be(total in 0usize..100_000, parts in 1usize..200) {
        let split = Split::new(total, parts);
        let mut end = 0;
        for r in 0..parts {
            prop_assert_eq!(split.range(r).start, end);
            prop_assert_eq!(split.range(r).start, (r as u128 * total as u128 / parts as u128) as usize);
            end = split.range(r).end;
            prop_assert_eq!(split.count(r), split.range(r).len());
            prop_assert!(split.count(r) == total / parts || split.count(r) == total.div_ceil(parts));
        }
        prop_assert_eq!(end, total);
    }
}
