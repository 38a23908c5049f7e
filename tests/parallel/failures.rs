//! Whatever one rank does wrong, all ranks stop, soon and with its error: nothing here may hang.

use super::*;
use candle_core::DType;
use longreel::parallel::{Communicator, Reduce, Single};
use longreel::{Error, Result, bail};
use std::sync::{Arc, Mutex};

pub type Collective = (&'static str, fn(&dyn Communicator) -> Result<()>);

/// One call of every collective.
pub const COLLECTIVES: [Collective; 7] = [
    ("all_to_all", |c| c.all_to_all(vec![f32s(&[1.0]); c.size()], &vec![vec![1]; c.size()]).map(|_| ())),
    ("all_gather", |c| c.all_gather(&f32s(&[1.0]), &vec![vec![1]; c.size()]).map(|_| ())),
    ("reduce_scatter", |c| c.reduce_scatter(&f32s(&vec![1.0; c.size()]), &vec![1; c.size()]).map(|_| ())),
    ("all_reduce", |c| c.all_reduce(&f32s(&[1.0]), Reduce::Sum)),
    ("broadcast", |c| c.broadcast(&f32s(&[1.0]), 0)),
    ("barrier", |c| c.barrier()),
    ("split", |c| c.split(0, 0).map(|_| ())),
];

#[derive(Clone, Copy, Debug, PartialEq)]
enum Failure {
    Error,
    Panic,
    Return,
}

/// Rank 2 of 4 fails while the others call `collective`, on the world or, if `split`, among the odd and the even ranks.
/// Returns the run's error and what ranks 0, 1 and 3 saw.
fn fail_at(collective: Collective, failure: Failure, split: bool, late: bool) -> (Error, Vec<(usize, String)>) {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let shared = seen.clone();
    let result = run_threads(4, 1, move |world| -> Result<()> {
        let r = world.rank();
        let comm = if split { world.split(r % 2, r)? } else { world.clone() };
        (collective.1)(&*comm)?; // all goes well once
        world.barrier()?; // for all
        if r == 2 {
            if late {
                std::thread::sleep(Duration::from_millis(20)); // the others wait already
            }
            match failure {
                Failure::Error => bail!(Data, "clip 17 is broken"),
                Failure::Panic => panic!("index {} out of bounds", 17),
                Failure::Return => return Ok(()),
            }
        }
        // Ranks 1 and 3 do not need rank 2 in their own group, and must hear of it all the same.
        let e = loop {
            if let Err(e) = (collective.1)(&*comm) {
                break e;
            }
        };
        let again = fails((collective.1)(&*comm)).to_string();
        assert_eq!(again, e.to_string(), "later calls fail too");
        shared.lock().unwrap().push((r, again));
        Err(e)
    });
    let seen = seen.lock().unwrap().clone();
    (fails(result), seen)
}

#[test]
fn a_failing_rank_stops_all_others_at_every_collective_with_its_own_error() {
    for collective in COLLECTIVES {
        for split in [false, true] {
            for late in [false, true] {
                for failure in [Failure::Error, Failure::Panic, Failure::Return] {
                    let (error, mut seen) = fail_at(collective, failure, split, late);
                    let case = format!("{} {failure:?} split {split} late {late}: {error}; {seen:?}", collective.0);
                    match (failure, &error) {
                        (Failure::Error, Error::Data(m)) => assert_eq!(m, "clip 17 is broken", "{case}"),
                        (Failure::Panic, Error::Rank { rank: 2, message }) => {
                            assert_eq!(message, "panicked: index 17 out of bounds", "{case}")
                        }
                        (Failure::Return, Error::Rank { rank: 2, message }) => {
                            assert!(message.contains("it returned while"), "{case}");
                            assert!(message.contains(collective.0), "{case}");
                        }
                        _ => panic!("{case}"),
                    }
                    seen.sort();
                    assert_eq!(seen.iter().map(|s| s.0).collect::<Vec<_>>(), [0, 1, 3], "{case}");
                    for (_, message) in seen {
                        let expected = match failure {
                            Failure::Error => "rank 2 failed: clip 17 is broken",
                            Failure::Panic => "rank 2 failed: panicked: index 17 out of bounds",
                            Failure::Return => "rank 2 failed: it returned while",
                        };
                        assert!(message.starts_with(expected), "{case}");
                    }
                }
            }
        }
    }
}

#[test]
fn the_error_kind_of_the_failing_rank_is_kept() {
    let result = run_threads(3, 1, |comm| {
        if comm.rank() == 1 {
            return Err(Error::NonFinite { step: 4, tensor: "loss".into(), value: f64::NAN });
        }
        comm.barrier()
    });
    assert!(matches!(fails(result), Error::NonFinite { step: 4, .. }));
    let result: Result<Vec<()>> = run_threads(1, 1, |_| panic!("alone"));
    let e = fails(result);
    assert!(matches!(&e, Error::Rank { rank: 0, message } if message == "panicked: alone"), "{e}");
}

#[test]
fn of_two_failures_the_first_is_reported() {
    for _ in 0..20 {
        let result = run_threads(3, 1, |comm| -> Result<()> {
            match comm.rank() {
                2 => bail!(Data, "the cause"),
                // Rank 0 fails in turn because of it.
                0 => match comm.barrier() {
                    Err(Error::Rank { rank: 2, .. }) => bail!(Data, "the consequence"),
                    other => other,
                },
                _ => comm.barrier(),
            }
        });
        assert_eq!(fails(result).to_string(), "the cause");
    }
}

/// Runs a call for each rank, which all must fail; the messages, in rank order.
fn disagree(calls: Vec<fn(&dyn Communicator) -> Result<()>>) -> Vec<String> {
    run_threads(calls.len(), 1, move |comm| {
        let e = fails(calls[comm.rank()](&*comm));
        let later = fails(comm.barrier());
        assert!(matches!(later, Error::Rank { .. }), "later calls fail too, got {later}");
        Ok(e.to_string())
    })
    .unwrap()
}

fn zeros(n: usize) -> Tensor {
    Tensor::zeros(n, DType::F32, &Device::Cpu).unwrap()
}

#[test]
fn disagreements_fail_on_all_ranks_and_name_both_sides() {
    type Call = fn(&dyn Communicator) -> Result<()>;
    let cases: Vec<(Call, Call, [&str; 2])> = vec![
        (|c| c.barrier(), |c| c.all_reduce(&zeros(3), Reduce::Sum), ["barrier", "all_reduce Sum of F32 [3]"]),
        (
            |c| c.all_reduce(&zeros(3), Reduce::Sum),
            |c| c.all_reduce(&zeros(3), Reduce::Max),
            ["all_reduce Sum of F32 [3]", "all_reduce Max of F32 [3]"],
        ),
        (
            |c| c.all_reduce(&zeros(6).reshape((2, 3))?, Reduce::Sum),
            |c| c.all_reduce(&zeros(6).reshape((3, 2))?, Reduce::Sum),
            ["[2, 3]", "[3, 2]"],
        ),
        (
            |c| c.all_reduce(&zeros(3), Reduce::Sum),
            |c| c.all_reduce(&zeros(3).to_dtype(DType::F64)?, Reduce::Sum),
            ["F32", "F64"],
        ),
        (|c| c.broadcast(&zeros(3), 0), |c| c.broadcast(&zeros(3), 1), ["from 0", "from 1"]),
        (|c| c.broadcast(&zeros(3), 0), |c| c.broadcast(&zeros(4), 0), ["[3]", "[4]"]),
        (
            |c| c.reduce_scatter(&zeros(5), &[1, 2, 2]).map(|_| ()),
            |c| c.reduce_scatter(&zeros(5), &[2, 1, 2]).map(|_| ()),
            ["[1, 2, 2]", "[2, 1, 2]"],
        ),
        (
            |c| c.all_gather(&zeros(1), &[vec![1], vec![1], vec![1]]).map(|_| ()),
            |c| c.all_gather(&zeros(2), &[vec![1], vec![2], vec![1]]).map(|_| ()),
            ["[[1], [1], [1]]", "[[1], [2], [1]]"],
        ),
        (
            |c| c.all_to_all(vec![zeros(2); 3], &vec![vec![2]; 3]).map(|_| ()),
            |c| c.all_to_all(vec![zeros(2), zeros(7), zeros(5)], &vec![vec![2]; 3]).map(|_| ()),
            ["rank 1 sends [7] to rank 1", "expects [2]"],
        ),
        (
            |c| c.all_to_all(vec![zeros(2); 3], &vec![vec![2]; 3]).map(|_| ()),
            |c| c.all_to_all(vec![zeros(2).to_dtype(DType::BF16)?; 3], &vec![vec![2]; 3]).map(|_| ()),
            ["all_to_all of F32", "all_to_all of BF16"],
        ),
    ];
    for (most, odd, sides) in cases {
        for message in disagree(vec![most, odd, most]) {
            assert!(message.contains("ranks disagree in call 0 of ranks [0, 1, 2]"), "{message}");
            assert!(sides.iter().all(|side| message.contains(side)), "{sides:?}: {message}");
        }
    }
}

#[test]
fn a_rank_with_bad_arguments_fails_all_ranks_with_what_is_wrong() {
    type Call = fn(&dyn Communicator) -> Result<()>;
    let bad: Vec<(Call, &str)> = vec![
        (|c| c.all_to_all(vec![zeros(1)], &[vec![1], vec![1]]).map(|_| ()), "given 1 tensors and 2 shapes"),
        (
            |c| c.all_to_all(vec![zeros(1), zeros(1).to_dtype(DType::F64)?], &[vec![1], vec![1]]).map(|_| ()),
            "tensors of F32 and of F64",
        ),
        (|c| c.all_gather(&zeros(1), &[vec![1]]).map(|_| ()), "given 1 shapes"),
        (|c| c.all_gather(&zeros(1), &[vec![1], vec![2]]).map(|_| ()), "sends [1], but shapes says [2]"),
        (|c| c.reduce_scatter(&zeros(3), &[3]).map(|_| ()), "given 1 counts"),
        (|c| c.reduce_scatter(&zeros(3), &[1, 1]).map(|_| ()), "do not add up"),
        (|c| c.reduce_scatter(&zeros(2).to_dtype(DType::BF16)?, &[1, 1]).map(|_| ()), "only f32 and f64"),
        (|c| c.all_reduce(&zeros(2).to_dtype(DType::U32)?, Reduce::Sum), "only f32 and f64"),
        (|c| c.all_reduce(&zeros(6).reshape((2, 3))?.t()?, Reduce::Sum), "needs a contiguous tensor"),
        (|c| c.broadcast(&zeros(6).reshape((2, 3))?.t()?, 0), "needs a contiguous tensor"),
        (|c| c.broadcast(&zeros(3), 2), "only 2 ranks"),
    ];
    for (call, expected) in bad {
        // Rank 0's call is sound, whatever it is.
        let messages = disagree(vec![|c| c.barrier(), call]);
        assert!(messages[0].starts_with("rank 1 failed: ") && messages[0].contains(expected), "{messages:?}");
        assert!(messages[1].contains(expected) && !messages[1].contains("failed"), "{messages:?}");
    }
    assert!(Single.all_to_all(vec![zeros(1)], &[vec![2]]).is_err());
    assert!(Single.all_gather(&zeros(1), &[]).is_err());
    assert!(Single.reduce_scatter(&zeros(2), &[1]).is_err());
    assert!(Single.broadcast(&zeros(2), 1).is_err());
    assert!(Single.all_reduce(&zeros(2).to_dtype(DType::U8).unwrap(), Reduce::Sum).is_err());
}

#[test]
fn ranks_that_wait_for_each_other_in_different_groups_get_an_error() {
    let messages = run_threads(2, 1, |world| {
        let same = world.split(0, 0)?;
        let result = if world.rank() == 0 { world.barrier() } else { same.barrier() };
        Ok(fails(result).to_string())
    });
    for message in messages.unwrap() {
        assert!(message.contains("wait for each other"), "{message}");
        assert!(message.contains("rank 0 waits in barrier (call 1 of ranks [0, 1])"), "{message}");
        assert!(message.contains("rank 1 waits in barrier (call 0 of ranks [0, 1])"), "{message}");
    }
}

#[test]
fn a_rank_that_also_calls_from_another_thread_does_not_count_as_standing_still() {
    let result = run_threads(2, 1, |world| {
        let aside: Arc<dyn Communicator> = world.split(0, 0)?;
        if world.rank() == 1 {
            aside.barrier()?;
            aside.barrier()?;
            return world.barrier();
        }
        std::thread::scope(|scope| {
            let helper = scope.spawn(|| {
                aside.barrier()?;
                std::thread::sleep(Duration::from_millis(30));
                aside.barrier()
            });
            std::thread::sleep(Duration::from_millis(10));
            world.barrier()?; // both ranks wait now, yet rank 0's helper will go on
            helper.join().expect("no panic")
        })
    });
    result.unwrap();
}
