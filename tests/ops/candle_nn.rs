//! The fused ops against candle-nn's, which others wrote.

use candle_core::{DType, Device, Tensor};
use longreel::ops::{Affine, Param, Tape, layer_norm, rms_norm, silu};

const EPS: f64 = 1e-5;

fn values(shape: (usize, usize), frequency: f32) -> Tensor {
    let values: Vec<f32> = (0..shape.0 * shape.1).map(|i| 3.0 * (i as f32 * frequency).sin() + 0.5).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

fn close(ours: &Tensor, theirs: &Tensor) {
    let difference = (ours - theirs).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
    assert!(difference < 2e-6, "{difference}");
    assert_eq!(ours.dims(), theirs.dims());
}

#[test]
fn norms_and_silu_are_candle_nns() {
    for (rows, width) in [(1, 1), (7, 33), (5, 192)] {
        let x = values((rows, width), 0.37);
        let [weight, bias] = [1.3, 2.9].map(|f| values((1, width), f).flatten_all().unwrap());
        let tape = Tape::off();
        let affine = Affine::Weights {
            weight: Param::leaf("weight", weight.clone()).unwrap(),
            bias: Param::leaf("bias", bias.clone()).unwrap(),
        };
        let theirs = candle_nn::ops::layer_norm(&x, &weight, &bias, EPS as f32).unwrap();
        close(&layer_norm(&tape, &x, affine, EPS).unwrap(), &theirs);
        let theirs = candle_nn::ops::rms_norm(&x, &weight, EPS as f32).unwrap();
        close(&rms_norm(&tape, &x, &Param::leaf("weight", weight).unwrap(), EPS).unwrap(), &theirs);
        close(&silu(&tape, &x).unwrap(), &candle_nn::ops::silu(&x).unwrap());
    }
    let x = values((3, 5), 0.9).to_dtype(DType::F64).unwrap();
    let theirs = candle_nn::ops::silu(&x).unwrap().to_dtype(DType::F32).unwrap();
    close(&silu(&Tape::off(), &x).unwrap().to_dtype(DType::F32).unwrap(), &theirs);
}
