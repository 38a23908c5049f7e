//! The tape itself: several outputs, inputs that nothing depends on, weights on the way, and values taken past it.

use super::{close, normal, values};
use candle_core::{Tensor, Var};
use longreel::ops::{Affine, Linear, Param, Tape, add, layer_norm, plain, rms_norm, silu};

/// The gradients of two outputs of one input add up, and each input gets its own.
#[test]
fn several_outputs_and_inputs() {
    let (x, z) = (normal(1, (7, 24)), normal(2, (7, 24)));
    let (g1, g2) = (normal(3, (7, 24)), normal(4, (7, 24)));
    let run = |swap: bool| {
        let tape = Tape::recording();
        let a = silu(&tape, &x).unwrap();
        let b = add(&tape, &a, &z).unwrap();
        let outputs = if swap { [(&b, &g2), (&a, &g1)] } else { [(&a, &g1), (&b, &g2)] };
        tape.backward(&outputs, &[&x, &z]).unwrap()
    };
    let slope = {
        let s = ((x.neg().unwrap().exp().unwrap() + 1.0).unwrap().recip()).unwrap();
        (&s + (&x * (&s * (1.0 - &s).unwrap()).unwrap()).unwrap()).unwrap()
    };
    let dx = ((&g1 + &g2).unwrap() * slope).unwrap();
    for swap in [false, true] {
        let gradients = run(swap);
        close("x", &gradients[0], &dx, 1e-14);
        close("z", &gradients[1], &g2, 1e-15);
    }
}

#[test]
fn an_input_that_no_output_depends_on_has_a_gradient_of_zeros() {
    let (x, unused) = (normal(1, (7, 24)), normal(2, (3, 5)));
    let tape = Tape::recording();
    let y = silu(&tape, &x).unwrap();
    let gradients = tape.backward(&[(&y, &normal(3, (7, 24)))], &[&unused, &x]).unwrap();
    assert_eq!(gradients[0].dims(), [3, 5]);
    assert!(values(&gradients[0]).iter().all(|&g| g == 0.0));
    assert!(values(&gradients[1]).iter().all(|&g| g != 0.0));
    assert!(values(&Tape::recording().backward(&[], &[&x]).unwrap()[0]).iter().all(|&g| g == 0.0));
}

#[test]
fn an_output_may_be_the_input_itself_and_stand_twice() {
    let (x, g) = (normal(1, (7, 24)), normal(2, (7, 24)));
    close("itself", &Tape::recording().backward(&[(&x, &g)], &[&x]).unwrap()[0], &g, 1e-15);
    let run = |times: usize| {
        let tape = Tape::recording();
        let y = silu(&tape, &x).unwrap();
        tape.backward(&vec![(&y, &g); times], &[&x]).unwrap().remove(0)
    };
    close("twice", &run(2), &(run(1) * 2.0).unwrap(), 1e-14);
}

/// Views serve as gradients: a run of rows of a buffer, and one that is not contiguous. The buffer stays as it is.
#[test]
fn gradients_may_be_views() {
    let (x, whole) = (normal(1, (7, 24)), normal(2, (20, 24)));
    let before = values(&whole);
    let run = |g: &Tensor| {
        let tape = Tape::recording();
        let y = add(&tape, &silu(&tape, &x).unwrap(), &x).unwrap(); // the view itself is handed on as x's first gradient
        tape.backward(&[(&y, g)], &[&x]).unwrap().remove(0)
    };
    let rows = whole.narrow(0, 5, 7).unwrap();
    let turned = rows.t().unwrap().contiguous().unwrap().t().unwrap(); // the same values, columns first
    let want = run(&rows.copy().unwrap());
    for g in [rows, turned] {
        close("view", &run(&g), &want, 1e-15);
    }
    assert_eq!(values(&whole), before);
}

/// A weight that serves twice on one tape, over two backward passes: all four contributions are there.
#[test]
fn weights_that_serve_twice_gather_every_gradient() {
    let (w, b) = (Param::leaf("w", normal(3, (24, 24))).unwrap(), Param::leaf("b", normal(4, 24)).unwrap());
    let scale = Param::leaf("scale", normal(5, 24)).unwrap();
    let layer = Linear::new(w.clone(), b.clone(), false);
    let (x, g) = (normal(1, (7, 24)), normal(2, (7, 24)));
    for _ in 0..2 {
        let tape = Tape::recording();
        let once = rms_norm(&tape, &layer.forward(&tape, &x).unwrap(), &scale, 1e-6).unwrap();
        let twice = rms_norm(&tape, &layer.forward(&tape, &once).unwrap(), &scale, 1e-6).unwrap();
        tape.backward(&[(&twice, &g)], &[&x]).unwrap();
    }
    // The same with Candle's autograd.
    let [vw, vb, vs] = [&w, &b, &scale].map(|p| Var::from_tensor(&p.value).unwrap());
    let plain = |x: &Tensor| plain::rms_norm(&plain::linear(x, &vw, &vb).unwrap(), &vs, 1e-6).unwrap();
    let loss = (plain(&plain(&x)) * &g).unwrap().sum_all().unwrap();
    let gradients = loss.backward().unwrap();
    for (param, var) in [(&w, &vw), (&b, &vb), (&scale, &vs)] {
        close(&param.name, param.grad().unwrap(), &(gradients.get(var).unwrap() * 2.0).unwrap(), 1e-12);
    }
}

#[test]
fn a_gradient_of_another_shape_is_refused() {
    let (tape, x) = (Tape::recording(), normal(1, (7, 24)));
    let y = layer_norm(&tape, &x, Affine::None, 1e-6).unwrap();
    let said = tape.backward(&[(&y, &normal(2, (7, 23)))], &[&x]).unwrap_err().to_string();
    assert!(said.contains("[7, 24]") && said.contains("[7, 23]"), "{said}");
}

/// A Candle op between two recorded ones would cut the gradient: that is an error, not a zero.
#[test]
fn a_value_taken_past_the_tape_is_an_error() {
    let (tape, x, g) = (Tape::recording(), normal(1, (7, 24)), normal(2, (7, 24)));
    let doubled = (silu(&tape, &x).unwrap() * 2.0).unwrap();
    let y = silu(&tape, &doubled).unwrap();
    let said = tape.backward(&[(&y, &g)], &[&x]).unwrap_err().to_string();
    assert!(said.contains("no gradient reaches") && said.contains("silu"), "{said}");
}

/// Without recording nothing is kept, and nothing can be differentiated.
#[test]
fn a_tape_that_is_off_records_nothing() {
    let (tape, x, g) = (Tape::off(), normal(1, (7, 24)), normal(2, (7, 24)));
    let y = silu(&tape, &x).unwrap();
    assert!(!tape.records() && Tape::recording().records());
    assert!(values(&tape.backward(&[(&y, &g)], &[&x]).unwrap()[0]).iter().all(|&g| g == 0.0));
}
