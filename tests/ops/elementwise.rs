//! SiLU, casts, and the small helpers over rows: row_dot, sum_columns, add_assign, read and write.

use super::{Op, RUNS, WIDTHS, close, normal, values};
use candle_core::{DType, Device, Tensor};
use longreel::ops::{Linear, Param, Tape, add, add_assign, cast, read, row_dot, silu, sum_columns, write};

#[test]
fn silu_and_add() {
    for (n, ..) in RUNS {
        for width in WIDTHS {
            let x = (normal(1, (n, width)) * 2.0).unwrap();
            Op {
                name: format!("silu [{n}, {width}]"),
                inputs: vec![x.clone()],
                params: vec![],
                fused: &|t, x, _| silu(t, &x[0]),
                plain: &|x, _| &x[0] * ((x[0].neg()?.exp()? + 1.0)?.recip()?),
            }
            .check();
            Op {
                name: format!("x + silu(z) [{n}, {width}]"),
                inputs: vec![x, normal(2, (n, width))],
                params: vec![],
                fused: &|t, x, _| add(t, &x[0], &silu(t, &x[1])?),
                plain: &|x, _| &x[0] + (&x[1] * ((x[1].neg()?.exp()? + 1.0)?.recip()?))?,
            }
            .check();
        }
    }
}

/// Where an exponential overflows, both are x or 0, and their slopes 1 or 0.
#[test]
fn gelu_and_silu_far_from_zero() {
    // GELU comes with a linear layer: here one that changes nothing.
    fn gelu(tape: &Tape, x: &Tensor) -> candle_core::Result<Tensor> {
        let one = Tensor::new(&[[1f64, 0.0], [0.0, 1.0]], &Device::Cpu)?.to_dtype(x.dtype())?;
        let [weight, bias] = [one.clone(), one.zeros_like()?.get(0)?].map(|t| Param::leaf("one", t));
        Linear::new(weight?, bias?, false).gelu(tape, x)
    }
    type Function = fn(&Tape, &Tensor) -> candle_core::Result<Tensor>;
    for (name, op) in [("gelu", gelu as Function), ("silu", silu)] {
        for dtype in [DType::F32, DType::F64] {
            for x in [20.0, 100.0, 1000.0, 1e4] {
                let x = Tensor::new(&[[x, -x]], &Device::Cpu).unwrap().to_dtype(dtype).unwrap();
                let tape = Tape::recording();
                let y = op(&tape, &x).unwrap();
                let slope = tape.backward(&[(&y, &x.ones_like().unwrap())], &[&x]).unwrap().remove(0);
                let (x, y, slope) = (values(&x), values(&y), values(&slope));
                for (got, want) in [(y[0], x[0]), (y[1], 0.0), (slope[0], 1.0), (slope[1], 0.0)] {
                    // silu(-20) is -4e-8 and its slope there -4e-8
                    assert!((got - want).abs() <= 1e-7 * want.abs().max(1.0), "{name}({x:?}): {got}, not {want}");
                }
            }
        }
    }
}

#[test]
fn row_dot_is_a_product_a_head() {
    for (n, heads, d) in [(1, 1, 24), (7, 3, 8), (33, 5, 40), (150, 2, 100)] {
        let (a, b) = (normal(1, (n, heads * d)), normal(2, (n, heads * d)));
        let plain = |a: &Tensor, b: &Tensor| (a * b).unwrap().reshape((n, heads, d)).unwrap().sum(2).unwrap();
        close("f64", &row_dot(&a, &b, heads).unwrap(), &plain(&a, &b), 1e-14);
        let f32 = row_dot(&a.to_dtype(DType::F32).unwrap(), &b.to_dtype(DType::F32).unwrap(), heads).unwrap();
        assert_eq!(f32.dtype(), DType::F32);
        close("f32", &f32, &plain(&a, &b), 1e-6);
        // bf16 values are multiplied and summed in f32.
        let (a, b) = (a.to_dtype(DType::BF16).unwrap(), b.to_dtype(DType::BF16).unwrap());
        let bf16 = row_dot(&a, &b, heads).unwrap();
        assert_eq!(bf16.dtype(), DType::F32);
        let wide = |t: &Tensor| t.to_dtype(DType::F64).unwrap();
        close("bf16", &bf16, &plain(&wide(&a), &wide(&b)), 1e-6);
    }
}

#[test]
fn sum_columns_sums_columns_with_the_same_bits_on_any_threads() {
    for n in [0, 1, 7, 33, 64, 65, 150, 1000] {
        for width in [1, 24, 40] {
            let x = normal(1, (n, width));
            let got = sum_columns(&values(&x), width);
            let mut want = vec![0.0; width];
            for row in values(&x).chunks_exact(width) {
                want.iter_mut().zip(row).for_each(|(w, v)| *w += v);
            }
            for (g, w) in got.iter().zip(&want) {
                assert!((g - w).abs() <= 1e-13 * (n as f64).sqrt().max(1.0), "[{n}, {width}]: {g} against {w}");
            }
            assert_eq!(got.len(), width);
            let x: Vec<f32> = values(&x).iter().map(|&v| v as f32).collect();
            let on = |threads| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                pool.install(|| sum_columns(&x, width)).iter().map(|v| v.to_bits()).collect::<Vec<_>>()
            };
            assert!(on(1) == on(2) && on(1) == on(3), "[{n}, {width}]: bits depend on threads");
        }
    }
}

/// Into a run of rows of a larger tensor, as the engine does: nothing else is touched.
#[test]
fn add_assign_adds_into_a_view() {
    for dtype in [DType::F32, DType::F64] {
        let whole = normal(1, (150, 200)).to_dtype(dtype).unwrap();
        let before = values(&whole);
        let add = normal(2, (101, 200)).to_dtype(dtype).unwrap();
        add_assign(&whole.narrow(0, 20, 101).unwrap(), &add).unwrap();
        let add = values(&add);
        for (i, (after, before)) in values(&whole).into_iter().zip(before).enumerate() {
            let row = i / 200;
            let want = if (20..121).contains(&row) { before + add[i - 20 * 200] } else { before };
            assert!((after - want).abs() <= 1e-6, "row {row}: {after}, not {want}");
            assert!(dtype == DType::F32 || after == want);
        }
    }
}

#[test]
fn helpers_refuse_what_they_cannot_use() {
    let said = add_assign(&normal(1, (3, 4)), &normal(2, (4, 3))).unwrap_err().to_string();
    assert!(said.contains("[3, 4]") && said.contains("[4, 3]"), "{said}");
    let f32 = normal(2, (3, 4)).to_dtype(DType::F32).unwrap();
    assert!(add_assign(&normal(1, (3, 4)), &f32).is_err());
    assert!(add_assign(&f32, &normal(1, (3, 4))).is_err());

    let turned = normal(1, (3, 4)).t().unwrap();
    assert!(read::<f64>(&turned).err().unwrap().to_string().contains("not contiguous"));
    assert!(write(&turned, |_: &mut [f64]| ()).unwrap_err().to_string().contains("not contiguous"));
    assert!(read::<f64>(&f32).is_err());
    assert!(write(&f32, |_: &mut [f64]| ()).unwrap_err().to_string().contains("F64 wanted, got F32"));
    assert!(silu(&Tape::off(), &turned).unwrap_err().to_string().contains("not contiguous"));
    assert!(silu(&Tape::off(), &f32.to_dtype(DType::BF16).unwrap()).unwrap_err().to_string().contains("BF16"));
}

/// A view is its part of the storage, for reading and for writing.
#[test]
fn read_and_write_see_the_view_alone() {
    let t = normal(1, (5, 4));
    let all = values(&t);
    let view = t.narrow(0, 1, 3).unwrap();
    assert_eq!(&*read::<f64>(&view).unwrap(), &all[4..16]);
    assert_eq!(
        write(&view, |v: &mut [f64]| {
            v.fill(7.0);
            v.len()
        })
        .unwrap(),
        12
    );
    assert_eq!(values(&t)[..4], all[..4]);
    assert_eq!(values(&t)[4..16], [7.0; 12]);
    assert_eq!(values(&t)[16..], all[16..]);
}

/// Casts are Candle's own, bit for bit, ties and NaN included, and so are the gradients that come back.
#[test]
fn casts_round_to_the_nearest_bf16_and_back() {
    let mut x: Vec<f32> = values(&normal(1, 40_000)).iter().map(|&v| v as f32).collect();
    x.extend([0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY, 1.0 + 1.0 / 256.0, 1.0 + 3.0 / 256.0, f32::MAX, 1e-40]);
    let x = Tensor::from_vec(x, 40_008, &Device::Cpu).unwrap();
    let tape = Tape::recording();
    let y = cast(&tape, &x, DType::BF16).unwrap();
    let want = x.to_dtype(DType::BF16).unwrap();
    assert_eq!(y.dtype(), DType::BF16);
    assert!(values(&y) == values(&want));
    let dx = tape.backward(&[(&y, &want)], &[&x]).unwrap().remove(0);
    assert_eq!(dx.dtype(), DType::F32);
    assert!(values(&dx) == values(&want));
    for bits in [0x7f80_0001u32, 0x7fff_ffff, 0xffff_ffff] {
        let nan = Tensor::new(&[f32::from_bits(bits)], &Device::Cpu).unwrap();
        assert!(values(&cast(&Tape::off(), &nan, DType::BF16).unwrap())[0].is_nan());
    }
    let same = cast(&Tape::recording(), &x, DType::F32).unwrap();
    assert_eq!(same.id(), x.id());
    assert!(cast(&Tape::off(), &x.to_dtype(DType::F64).unwrap(), DType::BF16).unwrap_err().to_string().contains("F64"));
}
