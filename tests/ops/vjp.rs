//! The vector-Jacobian product itself: several outputs, inputs that nothing depends on, weights on the way.

use super::{close, normal, values};
use candle_core::Var;
use longreel::ops::{Linear, Param, gelu, layer_norm, rms_norm, vjp};

fn var(what: u64, shape: (usize, usize)) -> Var {
    Var::from_tensor(&normal(what, shape)).unwrap()
}

/// The gradients of two outputs of one input add up, and each input gets its own.
#[test]
fn several_outputs_and_inputs() {
    let (x, z) = (var(1, (7, 24)), var(2, (7, 24)));
    let (g1, g2) = (normal(3, (7, 24)), normal(4, (7, 1)));
    let product = (x.as_tensor() * z.as_tensor()).unwrap();
    let sum = x.sqr().unwrap().sum_keepdim(1).unwrap(); // [7, 1]
    let gradients = vjp(&[(&product, &g1), (&sum, &g2)], &[&x, &z]).unwrap();
    let dx = ((&g1 * z.as_tensor()).unwrap() + (x.as_tensor() * 2.0).unwrap().broadcast_mul(&g2).unwrap()).unwrap();
    close("x", &gradients[0], &dx, 1e-14);
    close("z", &gradients[1], &(&g1 * x.as_tensor()).unwrap(), 1e-14);
    // The order of outputs does not matter, nor whether an input stands twice.
    let again = vjp(&[(&sum, &g2), (&product, &g1)], &[&z, &x]).unwrap();
    close("x again", &again[1], &dx, 1e-14);
}

#[test]
fn an_input_that_no_output_depends_on_has_a_gradient_of_zeros() {
    let (x, unused) = (var(1, (7, 24)), var(2, (3, 5)));
    let y = gelu(&x).unwrap();
    let gradients = vjp(&[(&y, &normal(3, (7, 24)))], &[&unused, &x]).unwrap();
    assert_eq!(gradients[0].dims(), [3, 5]);
    assert!(values(&gradients[0]).iter().all(|&g| g == 0.0));
    assert!(values(&gradients[1]).iter().all(|&g| g != 0.0));
    // No output at all; and an output of constants.
    assert!(values(&vjp(&[], &[&x]).unwrap()[0]).iter().all(|&g| g == 0.0));
    let constant = normal(4, (2, 2));
    assert!(values(&vjp(&[(&constant, &constant)], &[&x]).unwrap()[0]).iter().all(|&g| g == 0.0));
}

#[test]
fn an_output_may_be_the_input_itself_and_stand_twice() {
    let (x, g) = (var(1, (7, 24)), normal(2, (7, 24)));
    close("once", &vjp(&[(&x, &g)], &[&x]).unwrap()[0], &g, 1e-15);
    let y = gelu(&x).unwrap();
    let once = vjp(&[(&y, &g)], &[&x]).unwrap().remove(0);
    close("twice", &vjp(&[(&y, &g), (&y, &g)], &[&x]).unwrap()[0], &(once * 2.0).unwrap(), 1e-14);
}

/// Views serve as gradients: a run of rows of a buffer, and one that is not contiguous.
#[test]
fn gradients_may_be_views() {
    let x = var(1, (7, 24));
    let y = gelu(&x).unwrap();
    let whole = normal(2, (20, 24));
    let rows = whole.narrow(0, 5, 7).unwrap();
    let turned = rows.t().unwrap().contiguous().unwrap().t().unwrap(); // the same values, columns first
    let want = vjp(&[(&y, &rows.copy().unwrap())], &[&x]).unwrap().remove(0);
    for g in [rows, turned] {
        close("view", &vjp(&[(&y, &g)], &[&x]).unwrap()[0], &want, 1e-15);
    }
}

/// A weight that serves twice in one graph, over two backward passes: all four contributions are there.
#[test]
fn weights_that_serve_twice_gather_every_gradient() {
    let (w, b) = (Param::leaf("w", normal(3, (24, 24))).unwrap(), Param::leaf("b", normal(4, 24)).unwrap());
    let scale = Param::leaf("scale", normal(5, 24)).unwrap();
    let layer = Linear { weight: w.clone(), bias: b.clone(), bf16: false };
    let (x, g) = (var(1, (7, 24)), normal(2, (7, 24)));
    for _ in 0..2 {
        let once = rms_norm(&layer.forward(&x).unwrap(), &scale, 1e-6).unwrap();
        let twice = rms_norm(&layer.forward(&once).unwrap(), &scale, 1e-6).unwrap();
        vjp(&[(&twice, &g)], &[&x]).unwrap();
    }
    // The same with Candle's autograd.
    let [vw, vb, vs] = [&w, &b, &scale].map(|p| Var::from_tensor(&p.value).unwrap());
    let plain = |x: &candle_core::Tensor| {
        let y = longreel::ops::plain::linear(x, &vw, &vb).unwrap();
        longreel::ops::plain::rms_norm(&y, &vs, 1e-6).unwrap()
    };
    let loss = (plain(&plain(&x)) * &g).unwrap().sum_all().unwrap();
    let gradients = loss.backward().unwrap();
    for (param, var) in [(&w, &vw), (&b, &vb), (&scale, &vs)] {
        close(&param.name, &param.grad, &(gradients.get(var).unwrap() * 2.0).unwrap(), 1e-12);
    }
}

#[test]
fn a_gradient_of_another_shape_is_refused() {
    let x = var(1, (7, 24));
    let y = layer_norm(&x, longreel::ops::Affine::None, 1e-6).unwrap();
    let said = vjp(&[(&y, &normal(2, (7, 23)))], &[&x]).unwrap_err().to_string();
    assert!(said.contains("[7, 24]") && said.contains("[7, 23]"), "{said}");
}
