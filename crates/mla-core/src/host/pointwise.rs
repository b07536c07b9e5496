//! What a block does to each number of a row: the MLP's nonlinearity, and the norm without a mean.
//!
//! The backend makes a pass over memory for each operation of a formula, on one thread, with a call of the C library for each
//! number. Here a formula is one pass of vector code, and its rows are shared between threads.

use burn::tensor::{Tensor, TensorData};
use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use super::exp::exp;
use super::operand::{Operand, Rows};

/// Numbers of a task, about: for less a thread need not be woken.
const TASK: usize = 1 << 14;

/// `silu(gate) · up`, with `silu(x) = x / (1 + e⁻ˣ)`. `None` where the tensors are not the CPU's.
///
/// # Shapes
/// - `gate`, `up`: `[rows, width]` → the same
pub(crate) fn silu_gate(gate: &Tensor<2>, up: &Tensor<2>) -> Option<Tensor<2>> {
    let up = Operand::rows(up)?;
    by_rows(gate, &SiluGate { up: up.at(&[]) })
}

/// `x Φ(x)` as GPT-2 approximates it: `x (1 + tanh u) / 2 = x / (1 + e⁻²ᵘ)`, `u = √(2/π) (x + 0.044715 x³)` (Hendrycks &
/// Gimpel 2016). `None` where the tensor is not the CPU's.
///
/// # Shapes
/// - `x`: `[rows, width]` → the same
pub(crate) fn gelu_tanh(x: &Tensor<2>) -> Option<Tensor<2>> {
    by_rows(x, &GeluTanh)
}

/// `x / √(mean(x²) + ε) · γ` for each row (Zhang & Sennrich 2019). `None` where the tensors are not the CPU's.
///
/// # Shapes
/// - `x`: `[rows, width]`, `gamma`: `[width]` → `[rows, width]`
pub(crate) fn rms_norm(x: &Tensor<2>, gamma: &Tensor<1>, epsilon: f64) -> Option<Tensor<2>> {
    let gamma = Operand::rows(gamma)?;
    by_rows(x, &RmsNorm { gamma: gamma.vector(), epsilon: epsilon as f32 })
}

/// What is made of a row, as loops that can become vector code.
trait Formula: Sync {
    fn row(&self, row: usize, x: &[f32], out: &mut [f32]);
}

/// A formula for some rows, compiled for what the processor has.
struct Apply<'a, F> {
    formula: &'a F,
    x: Rows<'a>,
    first: usize,
    out: &'a mut [f32],
}

impl<F: Formula> WithSimd for Apply<'_, F> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let Self { formula, x, first, out } = self;
        for (row, out) in (first..).zip(out.chunks_exact_mut(x.width)) {
            formula.row(row, x.row(row), out);
        }
    }
}

fn by_rows(x: &Tensor<2>, formula: &impl Formula) -> Option<Tensor<2>> {
    let operand = Operand::rows(x)?;
    let (x, device) = (operand.at(&[]), x.device());
    let mut out = vec![0.0; x.count * x.width];
    let rows = (TASK / x.width.max(1)).max(1);
    let apply = |(task, out)| pulp::Arch::new().dispatch(Apply { formula, x, first: task * rows, out });
    match x.count <= rows {
        true => apply((0, &mut out[..])),
        false => out.par_chunks_mut(rows * x.width).enumerate().for_each(apply),
    }
    Some(Tensor::from_data(TensorData::new(out, [x.count, x.width]), &device))
}

struct SiluGate<'a> {
    up: Rows<'a>,
}

impl Formula for SiluGate<'_> {
    #[inline(always)]
    fn row(&self, row: usize, gate: &[f32], out: &mut [f32]) {
        for ((out, &x), &up) in out.iter_mut().zip(gate).zip(self.up.row(row)) {
            *out = x * up / (1.0 + exp(-x));
        }
    }
}

struct GeluTanh;

impl Formula for GeluTanh {
    #[inline(always)]
    fn row(&self, _: usize, x: &[f32], out: &mut [f32]) {
        /// √(2/π)
        const SCALE: f32 = std::f32::consts::FRAC_2_SQRT_PI * std::f32::consts::FRAC_1_SQRT_2;
        for (out, &x) in out.iter_mut().zip(x) {
            let u = SCALE * (x + 0.044715 * x * x * x);
            *out = x / (1.0 + exp(-2.0 * u));
        }
    }
}

struct RmsNorm<'a> {
    gamma: &'a [f32],
    epsilon: f32,
}

impl Formula for RmsNorm<'_> {
    #[inline(always)]
    fn row(&self, _: usize, x: &[f32], out: &mut [f32]) {
        let scale = 1.0 / (sum_of_squares(x) / x.len() as f32 + self.epsilon).sqrt();
        for ((out, &x), &gamma) in out.iter_mut().zip(x).zip(self.gamma) {
            *out = x * scale * gamma;
        }
    }
}

/// Over partial sums, so that the compiler may keep them in one register.
#[inline(always)]
fn sum_of_squares(row: &[f32]) -> f32 {
    let mut sums = [0.0; 16];
    let (chunks, rest) = row.as_chunks::<16>();
    for chunk in chunks {
        sums.iter_mut().zip(chunk).for_each(|(sum, x)| *sum += x * x);
    }
    rest.iter().map(|x| x * x).chain(sums).sum()
}

#[cfg(test)]
mod tests {
    use burn::nn::RmsNorm as Norm;
    use burn::nn::RmsNormConfig;
    use burn::tensor::activation::{gelu_approximate, silu};
    use burn::tensor::{Device, Distribution};

    use super::*;

    #[test]
    fn formulas_are_the_backends() {
        let device = Device::flex();
        device.seed(3);
        let random = |shape| Tensor::<2>::random(shape, Distribution::Normal(0.0, 8.0), &device);
        // A row and less than a vector; several tasks with an odd end.
        for shape in [[1, 5], [77, 1000]] {
            let (x, y) = (random(shape), random(shape));
            let norm: Norm = RmsNormConfig::new(shape[1]).with_epsilon(1e-5).init(&device);
            let gamma = Tensor::random([shape[1]], Distribution::Default, &device);
            let norm = Norm { gamma: burn::module::Param::from_tensor(gamma), ..norm };
            for (found, right) in [
                (silu_gate(&x, &y), silu(x.clone()) * y.clone()),
                (gelu_tanh(&x), gelu_approximate(x.clone())),
                (rms_norm(&x, &norm.gamma.val(), norm.epsilon), norm.forward(x.clone())),
            ] {
                let gap = (found.expect("on the CPU") - right.clone()).abs() / (right.abs() + 1e-2);
                let gap: f32 = gap.max().into_scalar();
                assert!(gap < 1e-5, "{shape:?}: {gap}");
            }
            assert!(gelu_tanh(&x.transpose()).is_none() || shape[0] == 1);
        }
    }

    #[test]
    fn what_is_far_from_0_stays_finite_and_nan_stays_nan() {
        let device = Device::flex();
        let x = Tensor::<2>::from_data([[-1e30, -100.0, 0.0, 100.0, 1e10, f32::NAN]], &device);
        let ones = x.ones_like();
        for found in [gelu_tanh(&x), silu_gate(&x, &ones)] {
            let found = found.expect("on the CPU").into_data().try_into_vec::<f32>().expect("f32");
            assert!(found[..2].iter().all(|x| x.abs() < 1e-7), "{found:?}");
            assert_eq!(found[2..5], [0.0, 100.0, 1e10]);
            assert!(found[5].is_nan());
        }
    }
}
