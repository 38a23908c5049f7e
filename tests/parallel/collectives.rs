//! Every collective against a plain computation, for uneven and zero counts, on the world and on parts of it.

use super::*;
use candle_core::DType;
use longreel::Result;
use longreel::parallel::{Communicator, Mesh, Reduce, Single, Split, agree};
use std::sync::Arc;

/// How many elements rank r of p gives in an uneven split; some have none.
pub fn uneven(p: usize) -> Vec<usize> {
    (0..p).map(|r| [5, 0, 9000, 1, 3, 0, 2, 70_000][(r * 3 + p) % 8]).collect()
}

/// `ranks`' contributions of `n` numbers each, summed in rank order.
fn plain_sum(parts: &[Vec<f32>]) -> Vec<f32> {
    let mut sum = parts[0].clone();
    for part in &parts[1..] {
        sum.iter_mut().zip(part).for_each(|(acc, x)| *acc += x);
    }
    sum
}

#[test]
fn all_reduce_gives_every_rank_the_bits_of_the_plain_sum_in_rank_order() {
    for (p, n) in [(1, 10), (2, 1), (3, 0), (4, 3), (5, 20_001), (8, 9001)] {
        let parts: Vec<Vec<f32>> = (0..p).map(|r| wide(1, r as u64, n)).collect();
        let expected: Vec<u32> = plain_sum(&parts).iter().map(|x| x.to_bits()).collect();
        if p > 2 && n > 1000 {
            let reversed: Vec<Vec<f32>> = parts.iter().rev().cloned().collect();
            assert_ne!(expected, plain_sum(&reversed).iter().map(|x| x.to_bits()).collect::<Vec<_>>());
        }
        let parts = Arc::new(parts);
        let results = run_threads(p, 2, move |comm| {
            // A view into a larger buffer: what lies around it must stay.
            let all = Tensor::cat(&[&f32s(&[-1.5]), &f32s(&parts[comm.rank()]), &f32s(&[2.5])], 0)?;
            comm.all_reduce(&all.narrow(0, 1, n)?, Reduce::Sum)?;
            Ok(bits(&all))
        });
        for got in results.unwrap() {
            assert_eq!(got[0], (-1.5f32).to_bits());
            assert_eq!(got[1..=n], expected, "{p} ranks, {n} elements");
            assert_eq!(got[n + 1], 2.5f32.to_bits());
        }
    }
}

#[test]
fn all_reduce_knows_f64_maximum_minimum_scalars_and_nan() {
    let results = run_threads(3, 1, |comm| {
        let r = comm.rank() as f64;
        let of = |values: &[f64]| Tensor::new(values, &Device::Cpu).unwrap();
        let (sum, max, min) = (of(&[0.1 * r, 1e300]), of(&[r, -r, -1.0]), of(&[r, -r, -1.0]));
        comm.all_reduce(&sum, Reduce::Sum)?;
        comm.all_reduce(&max, Reduce::Max)?;
        comm.all_reduce(&min, Reduce::Min)?;
        let scalar = Tensor::new(r, &Device::Cpu)?;
        comm.all_reduce(&scalar, Reduce::Sum)?;
        let nan = of(&[if comm.rank() == 1 { f64::NAN } else { r }]);
        let nan_too = nan.copy()?;
        comm.all_reduce(&nan, Reduce::Max)?;
        comm.all_reduce(&nan_too, Reduce::Min)?;
        assert!(nan.to_vec1::<f64>()?[0].is_nan() && nan_too.to_vec1::<f64>()?[0].is_nan());
        Ok((sum.to_vec1::<f64>()?, max.to_vec1::<f64>()?, min.to_vec1::<f64>()?, scalar.to_scalar::<f64>()?))
    });
    for (sum, max, min, scalar) in results.unwrap() {
        assert_eq!(sum, [0.0 + 0.1 * 1.0 + 0.1 * 2.0, 3e300]);
        assert_eq!(max, [2.0, 0.0, -1.0]);
        assert_eq!(min, [0.0, -2.0, -1.0]);
        assert_eq!(scalar, 3.0);
    }
}

#[test]
fn reduce_scatter_sums_uneven_and_empty_parts_in_rank_order() {
    for p in [1, 2, 3, 8] {
        let counts = uneven(p);
        let n: usize = counts.iter().sum();
        let parts: Arc<Vec<Vec<f32>>> = Arc::new((0..p).map(|r| wide(2, r as u64, n)).collect());
        let expected: Vec<u32> = plain_sum(&parts).iter().map(|x| x.to_bits()).collect();
        let results = run_threads(p, 1, move |comm| {
            let buffer = f32s(&parts[comm.rank()]);
            let mine = comm.reduce_scatter(&buffer, &uneven(p))?;
            assert_eq!(bits(&buffer), bits(&f32s(&parts[comm.rank()])), "the buffer must stay");
            Ok(bits(&mine))
        })
        .unwrap();
        assert_eq!(results.iter().map(Vec::len).collect::<Vec<_>>(), counts);
        assert_eq!(results.concat(), expected, "{p} ranks");
    }
}

#[test]
fn all_gather_and_broadcast_give_copies_of_any_dtype() {
    for p in [1, 2, 5] {
        let results = run_threads(p, 1, move |comm| {
            let (r, counts) = (comm.rank(), uneven(p));
            let shapes: Vec<Vec<usize>> = counts.iter().map(|&n| vec![n, 2]).collect();
            for dtype in [DType::F32, DType::BF16, DType::F64, DType::I64, DType::U8] {
                // Rank r sends r, as a transposed (strided) view; later changes on either side stay where they are
                // made.
                let source = (Tensor::ones((2, counts[r]), DType::F32, &Device::Cpu)? * r as f64)?.to_dtype(dtype)?;
                let gathered = comm.all_gather(&source.t()?, &shapes)?;
                let own = source.t()?.contiguous()?;
                own.slice_set(&own.ones_like()?, 0, 0)?;
                if counts[0] > 0 {
                    gathered[0].slice_set(&(gathered[0].ones_like()? * r as f64)?.to_dtype(dtype)?, 0, 0)?;
                }
                comm.barrier()?;
                for (i, t) in gathered.iter().enumerate() {
                    assert_eq!(t.dims(), shapes[i]);
                    let expected = if i == 0 { r as f64 } else { i as f64 };
                    let values = t.to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>()?;
                    assert!(values.iter().all(|&v| v == expected), "{dtype:?} from {i} on {r}");
                }

                let root = p - 1;
                let all = (Tensor::ones((3, 4), DType::F32, &Device::Cpu)? * (r + 1) as f64)?.to_dtype(dtype)?;
                comm.broadcast(&all.narrow(0, 1, 2)?, root)?; // rows 1 and 2
                if r == root {
                    all.slice_set(&all.zeros_like()?, 0, 0)?; // too late to be seen by the others
                }
                comm.barrier()?;
                let rows = all.to_dtype(DType::F64)?.to_vec2::<f64>()?;
                let (first, rest) = if r == root { (0.0, 0.0) } else { ((r + 1) as f64, p as f64) };
                assert_eq!(rows, [[first; 4], [rest; 4], [rest; 4]], "{dtype:?} on {r}");
            }
            Ok(())
        });
        results.unwrap();
    }
}

#[test]
fn a_gathered_buffer_may_change_as_soon_as_the_call_returns() {
    let results = run_threads(4, 1, |comm| {
        let n = 30_000;
        let mine = f32s(&vec![comm.rank() as f32; n]);
        for step in 0..20 {
            let all = comm.all_gather(&mine, &vec![vec![n]; 4])?;
            let sum = comm.reduce_scatter(&mine, &[n, 0, 0, 0])?;
            mine.slice_set(&(mine.copy()? + 1.0)?, 0, 0)?; // an optimizer's step
            for (r, t) in all.iter().enumerate() {
                assert!(t.to_vec1::<f32>()?.iter().all(|&x| x == (r + step) as f32));
            }
            assert!(sum.to_vec1::<f32>()?.iter().all(|&x| x == (6 + 4 * step) as f32));
        }
        Ok(())
    });
    results.unwrap();
}

#[test]
fn all_to_all_carries_uneven_counts_and_views() {
    for p in [1, 2, 3, 7] {
        let count = |from: usize, to: usize| (from * 5 + to * 3) % 4 * 1000; // some are 0
        let results = run_threads(p, 1, move |comm| {
            let r = comm.rank();
            for views in [false, true] {
                let whole = |to: usize| f32s(&vec![(r * 10 + to) as f32; if views { 4000 } else { count(r, to) }]);
                let kept: Vec<Tensor> = (0..p).map(whole).collect();
                let send = kept.iter().enumerate().map(|(to, t)| t.narrow(0, 0, count(r, to)).unwrap()).collect();
                let shapes: Vec<_> = (0..p).map(|from| vec![count(from, r)]).collect();
                let received = comm.all_to_all(send, &shapes)?;
                if views {
                    // Parts of larger buffers stay the sender's, which may use them again.
                    kept.iter().try_for_each(|t| t.slice_set(&t.zeros_like()?, 0, 0))?;
                }
                comm.barrier()?;
                for (from, t) in received.iter().enumerate() {
                    assert_eq!(t.to_vec1::<f32>()?, vec![(from * 10 + r) as f32; count(from, r)], "{p}: {from} to {r}");
                }
            }
            Ok(())
        });
        results.unwrap();
    }
}

#[test]
fn split_groups_by_color_and_orders_by_key_then_rank() {
    let results = run_threads(7, 1, |comm| {
        let r = comm.rank();
        let part = comm.split(r % 2, 10 - r / 4)?; // ranks 4.. come first
        let mine = Tensor::new(&[r as i64], &Device::Cpu)?;
        let members: Vec<i64> = part
            .all_gather(&mine, &vec![vec![1]; part.size()])?
            .iter()
            .map(|t| t.to_vec1::<i64>().unwrap()[0])
            .collect();
        assert_eq!(members[part.rank()], r as i64);
        let nested = part.split(part.rank() / 2, 0)?;
        let sum = f32s(&[r as f32]);
        nested.all_reduce(&sum, Reduce::Sum)?;
        Ok((members, nested.size(), sum.to_vec1::<f32>()?[0]))
    })
    .unwrap();
    for (r, (members, nested, sum)) in results.into_iter().enumerate() {
        assert_eq!(members, if r % 2 == 0 { vec![4, 6, 0, 2] } else { vec![5, 1, 3] });
        let (expected_size, expected_sum) = match r {
            4 | 6 => (2, 10.0),
            0 | 2 => (2, 2.0),
            5 | 1 => (2, 6.0),
            _ => (1, 3.0),
        };
        assert_eq!((nested, sum), (expected_size, expected_sum), "rank {r}");
    }
}

#[test]
fn mesh_has_sequence_innermost_and_refuses_uneven_groups() {
    let results = run_threads(6, 1, |comm| {
        let mesh = Mesh::new(comm, 3, 2, 0)?;
        let sum = |comm: &dyn Communicator| -> Result<f32> {
            let x = f32s(&[10f32.powi(mesh.world.rank() as i32)]);
            comm.all_reduce(&x, Reduce::Sum)?;
            Ok(x.to_vec1::<f32>()?[0])
        };
        Ok((mesh.sequence.all.rank(), sum(&*mesh.sequence.all)?, mesh.data.rank(), sum(&*mesh.data)?))
    });
    let expected = [
        (0, 11.0, 0, 10101.0),
        (1, 11.0, 0, 101010.0),
        (0, 1100.0, 1, 10101.0),
        (1, 1100.0, 1, 101010.0),
        (0, 110000.0, 2, 10101.0),
        (1, 110000.0, 2, 101010.0),
    ];
    assert_eq!(results.unwrap(), expected);
    for data in [0, 4] {
        let e = refusal!(Shape, run_threads(6, 1, move |comm| Mesh::new(comm, data, 2, 0).map(|_| ())));
        assert!(e.contains(&format!("6 ranks cannot form {data} data-parallel groups")), "{e}");
    }
    let mesh = Mesh::new(Arc::new(Single), 1, 1, 0).unwrap();
    assert_eq!((mesh.data.size(), mesh.sequence.all.size()), (1, 1));
}

#[test]
fn agree_names_the_ranks_that_differ() {
    run_threads(4, 1, |comm| agree(&*comm, "the seed", u64::MAX)).unwrap();
    agree(&Single, "the seed", 3).unwrap();
    let messages =
        run_threads(3, 1, |comm| Ok(refusal!(Environment, agree(&*comm, "the seed", 5 + comm.rank() as u64 / 2))));
    for message in messages.unwrap() {
        assert!(message.contains("disagree on the seed: rank 0 has 5, rank 1 has 5, rank 2 has 6"), "{message}");
    }
}

/// `calls` collectives of all kinds on all ranks and on parts of them.
pub fn mixed(comm: Arc<dyn Communicator>, calls: u64) -> Result<()> {
    let r = comm.rank();
    let parts = [comm.split(r % 2, r)?, comm.split(r / 3, comm.size() - r)?, comm.clone()];
    let mut delay = random(3, 100 + r as u64);
    let mut choice = random(3, 0); // the same on every rank
    for call in 0..calls {
        if delay.below(4) == 0 {
            std::thread::sleep(std::time::Duration::from_micros(delay.below(300)));
        }
        let comm = &parts[choice.below(3) as usize];
        let (p, me) = (comm.size(), comm.rank());
        let n = choice.below(50) as usize;
        let code = |from: usize, to: usize| (call * 100) as f32 + (from * 10 + to) as f32;
        match choice.below(6) {
            0 => comm.barrier()?,
            1 => {
                let x = f32s(&vec![code(me, 0); n]);
                comm.all_reduce(&x, Reduce::Max)?;
                assert_eq!(x.to_vec1::<f32>()?, vec![code(p - 1, 0); n]);
            }
            2 => {
                let x = f32s(&vec![code(me, 0); n]);
                comm.broadcast(&x, call as usize % p)?;
                assert_eq!(x.to_vec1::<f32>()?, vec![code(call as usize % p, 0); n]);
            }
            3 => {
                let shapes: Vec<_> = (0..p).map(|from| vec![n + from]).collect();
                let all = comm.all_gather(&f32s(&vec![code(me, 0); n + me]), &shapes)?;
                for (from, t) in all.iter().enumerate() {
                    assert_eq!(t.to_vec1::<f32>()?, vec![code(from, 0); n + from]);
                }
            }
            4 => {
                let send = (0..p).map(|to| f32s(&vec![code(me, to); n + to])).collect();
                for (from, t) in comm.all_to_all(send, &vec![vec![n + me]; p])?.iter().enumerate() {
                    assert_eq!(t.to_vec1::<f32>()?, vec![code(from, me); n + me]);
                }
            }
            _ => {
                let split = Split::new(n, p);
                let counts: Vec<_> = (0..p).map(|r| split.count(r)).collect();
                let sum = comm.reduce_scatter(&f32s(&vec![me as f32; n]), &counts)?;
                assert_eq!(sum.to_vec1::<f32>()?, vec![(p * (p - 1) / 2) as f32; counts[me]]);
            }
        }
    }
    Ok(())
}

#[test]
fn many_mixed_collectives_with_random_delays() {
    run_threads(8, 1, |comm| mixed(comm, 400)).unwrap();
}
