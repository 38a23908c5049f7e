//! Every differentiable op against finite differences and against its plain form, forward and backward, and what else
//! an op promises: f32 close to f64, the same bits for any number of threads, weight gradients that add up.
//!
//! An op under test is an [`Op`]: a fused form over inputs and [`Param`]s, and a plain form over tensors that Candle's
//! autograd differentiates. Not here: whole networks (`model/`, `golden.rs`) and flash attention (`attention.rs`).

mod candle_nn;
mod cross;
mod elementwise;
mod linear;
mod low_rank;
mod norm;
mod rope;
mod tape;

use candle_core::{DType, Device, Result, Tensor, Var};
use longreel::ops::{Param, Tape};
use longreel::rng::{Key, Purpose};

/// (rows, where they start, tokens of a sample) on a batch of [`SAMPLES`]: one row, and runs that straddle two to four
/// samples, the last longer than what one thread sums at a time.
pub const RUNS: [(usize, usize, usize); 4] = [(1, 5, 2), (7, 5, 3), (33, 30, 20), (150, 10, 100)];
pub const SAMPLES: usize = 4;

/// Widths that no instruction set's vectors divide evenly.
pub const WIDTHS: [usize; 3] = [24, 40, 200];

/// Normal numbers in f64 that f32 holds exactly; `what` tells draws apart.
pub fn normal(what: u64, shape: impl Into<candle_core::Shape>) -> Tensor {
    let shape = shape.into();
    let mut values = vec![0f32; shape.elem_count()];
    Key { seed: 1, purpose: Purpose::Test, step: 0, sample: what }.stream(0).fill_normal(&mut values);
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap().to_dtype(DType::F64).unwrap()
}

/// All values of a tensor, in f64.
pub fn values(t: &Tensor) -> Vec<f64> {
    t.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// The largest difference is at most `tolerance` of the largest value.
#[track_caller]
pub fn close(what: &str, got: &Tensor, want: &Tensor, tolerance: f64) {
    assert_eq!(got.dims(), want.dims(), "{what}");
    let (got, want) = (values(got), values(want));
    let largest = want.iter().fold(0f64, |a, w| a.max(w.abs()));
    let off = got.iter().zip(&want).map(|(g, w)| (g - w).abs()).fold(0f64, |a, b| if b >= a { b } else { a.max(b) });
    assert!(got.iter().all(|g| g.is_finite()), "{what}: not finite");
    assert!(largest > 0.0, "{what}: all zero tells nothing");
    assert!(off <= tolerance * largest, "{what}: off by {:.1e} of the largest value", off / largest);
}

/// A fused form: inputs and parameters to output.
pub type Fused<'a> = &'a (dyn Fn(&Tape, &[Tensor], &[Param]) -> Result<Tensor> + Sync);
/// A plain form: inputs and parameters to output.
pub type Plain<'a> = &'a (dyn Fn(&[Tensor], &[Tensor]) -> Result<Tensor> + Sync);

/// An op with the tensors it is tested on, all f64.
pub struct Op<'a> {
    pub name: String,
    pub inputs: Vec<Tensor>,
    pub params: Vec<Tensor>,
    pub fused: Fused<'a>,
    pub plain: Plain<'a>,
}

impl Op<'_> {
    /// All of the checks below.
    pub fn check(&self) {
        self.equals_its_plain_form();
        self.has_the_gradient_of_finite_differences();
        self.adds_gradients_up();
        self.is_close_in_f32();
        self.gives_the_same_bits_for_any_number_of_threads();
    }

    /// The output's gradient that backward starts from.
    fn cotangent(&self, y: &Tensor) -> Tensor {
        normal(99, y.dims()).to_dtype(y.dtype()).unwrap()
    }

    /// The fused form: the output, then the gradients of inputs and parameters, in `dtype`.
    fn run(&self, dtype: DType) -> Vec<Tensor> {
        let inputs: Vec<Tensor> = self.inputs.iter().map(|t| t.to_dtype(dtype).unwrap()).collect();
        let params: Vec<Param> =
            self.params.iter().map(|t| Param::leaf("p", t.to_dtype(dtype).unwrap()).unwrap()).collect();
        let tape = Tape::recording();
        let y = (self.fused)(&tape, &inputs, &params).unwrap();
        let gradients = tape.backward(&[(&y, &self.cotangent(&y))], &inputs.iter().collect::<Vec<_>>()).unwrap();
        let unrecorded = (self.fused)(&Tape::off(), &inputs, &params).unwrap();
        assert!(values(&y) == values(&unrecorded), "{}: another value without a tape", self.name);
        let mut all = vec![y];
        all.extend(gradients);
        all.extend(params.iter().map(|p| p.grad().unwrap().clone()));
        all
    }

    fn names(&self) -> Vec<String> {
        let inputs = (0..self.inputs.len()).map(|i| format!("{}, gradient of input {i}", self.name));
        let params = (0..self.params.len()).map(|i| format!("{}, gradient of parameter {i}", self.name));
        std::iter::once(format!("{}, output", self.name)).chain(inputs).chain(params).collect()
    }

    fn equals_its_plain_form(&self) {
        let vars = |ts: &[Tensor]| ts.iter().map(|t| Var::from_tensor(t).unwrap()).collect::<Vec<_>>();
        let tensors = |vs: &[Var]| vs.iter().map(|v| v.as_tensor().clone()).collect::<Vec<_>>();
        let (inputs, params) = (vars(&self.inputs), vars(&self.params));
        let y = (self.plain)(&tensors(&inputs), &tensors(&params)).unwrap();
        let gradients = (&y * self.cotangent(&y)).unwrap().sum_all().unwrap().backward().unwrap();
        let mut want = vec![y];
        want.extend(inputs.iter().chain(&params).map(|v| gradients.get(v).unwrap().clone()));
        for ((name, got), want) in self.names().iter().zip(self.run(DType::F64)).zip(want) {
            close(&format!("{name} against plain"), &got, &want, 1e-12);
        }
    }

    /// Every element of small tensors, some of large ones, and two directions that all elements have a part in.
    fn has_the_gradient_of_finite_differences(&self) {
        let gradients = &self.run(DType::F64)[1..];
        let base: Vec<&Tensor> = self.inputs.iter().chain(&self.params).collect();
        for (which, (name, gradient)) in self.names()[1..].iter().zip(gradients).enumerate() {
            let n = gradient.elem_count();
            let picked: Vec<usize> =
                if n <= 48 { (0..n).collect() } else { (0..13).map(|i| i * (n - 1) / 12).collect() };
            let mut directions: Vec<Vec<f64>> = picked
                .into_iter()
                .map(|i| {
                    let mut one = vec![0.0; n];
                    one[i] = 1.0;
                    one
                })
                .collect();
            directions.extend((0..2).map(|i| values(&normal(70 + i, n))));
            let g = values(gradient);
            let largest = g.iter().fold(0f64, |a, g| a.max(g.abs()));
            for direction in directions {
                let length = direction.iter().map(|d| d * d).sum::<f64>().sqrt();
                let want = self.difference(&base, which, &direction);
                let got: f64 = g.iter().zip(&direction).map(|(g, d)| g * d).sum();
                let off = (got - want).abs() / (largest * length);
                assert!(off <= 1e-9, "{name}: {got} against finite difference {want}, off by {off:.1e}");
            }
        }
    }

    /// The derivative of sum(output * cotangent) along a direction of one tensor: central differences of fourth order.
    fn difference(&self, base: &[&Tensor], which: usize, direction: &[f64]) -> f64 {
        const H: f64 = 1e-3;
        let output = |step: f64| -> Tensor {
            let mut tensors: Vec<Tensor> = base.iter().map(|&t| t.clone()).collect();
            let moved = Tensor::from_slice(direction, base[which].shape(), &Device::Cpu).unwrap();
            tensors[which] = (base[which] + (moved * (H * step)).unwrap()).unwrap();
            let params = tensors.split_off(self.inputs.len());
            let params: Vec<Param> = params.into_iter().map(|t| Param::leaf("p", t).unwrap()).collect();
            (self.fused)(&Tape::off(), &tensors, &params).unwrap()
        };
        let [a, b, c, d] = [1.0, -1.0, 2.0, -2.0].map(|step| values(&output(step)));
        let cotangent = values(&self.cotangent(&output(0.0)));
        let slope = |i: usize| (8.0 * (a[i] - b[i]) - (c[i] - d[i])) / (12.0 * H);
        cotangent.iter().enumerate().map(|(i, w)| w * slope(i)).sum()
    }

    /// Parameters' gradients are added to what is there: the second backward doubles them.
    fn adds_gradients_up(&self) {
        let params: Vec<Param> = self.params.iter().map(|t| Param::leaf("p", t.clone()).unwrap()).collect();
        for _ in 0..2 {
            let tape = Tape::recording();
            let y = (self.fused)(&tape, &self.inputs, &params).unwrap();
            tape.backward(&[(&y, &self.cotangent(&y))], &[]).unwrap();
        }
        let once = self.run(DType::F64).split_off(1 + self.inputs.len());
        for (param, once) in params.iter().zip(once) {
            close(&format!("{}, twice", self.name), param.grad().unwrap(), &(once * 2.0).unwrap(), 1e-13);
        }
    }

    fn is_close_in_f32(&self) {
        for ((name, got), want) in self.names().iter().zip(self.run(DType::F32)).zip(self.run(DType::F64)) {
            assert_eq!(got.dtype(), DType::F32);
            close(&format!("{name} in f32"), &got, &want, 3e-6); // rounding, in sums over up to 200 terms that cancel
        }
    }

    fn gives_the_same_bits_for_any_number_of_threads(&self) {
        let bits = |threads: usize| -> Vec<Vec<u64>> {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let all = pool.install(|| self.run(DType::F32));
            all.iter().map(|t| values(t).iter().map(|v| v.to_bits()).collect()).collect()
        };
        let one = bits(1);
        for threads in [2, 3] {
            for ((name, a), b) in self.names().iter().zip(&one).zip(&bits(threads)) {
                assert!(a == b, "{name}: other bits on {threads} threads than on one");
            }
        }
    }
}
