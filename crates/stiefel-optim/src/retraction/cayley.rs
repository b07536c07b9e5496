//! The Cayley curve (Wen & Yin 2013).

use burn::tensor::Tensor;

use super::inverse::inverse;
use crate::matrix::{axes, cross, identity};

/// `(I − W/2)⁻¹ (I + W/2) X` with the skew `W = P U Xᵀ − X Uᵀ P`, `P = I − XXᵀ/2`, for which `WX = U`.
///
/// W has rank 2p: with `A = [PU, X]` and `B = [X, −PU]` it is `ABᵀ`, and the point is `X + A (I − BᵀA/2)⁻¹ BᵀX` (Wen & Yin
/// 2013, lemma 4), where only a matrix of 2p × 2p is inverted.
///
/// # Shapes
/// - `x`, `u`: `[.., n, p]`, `u` tangent at `x` → the same
pub(crate) fn curve<const D: usize>(x: Tensor<D>, u: Tensor<D>) -> Tensor<D> {
    let [_, column] = axes::<D>();
    let pu = u.clone() - x.clone().matmul(cross(&x, u)) * 0.5;
    let a = Tensor::cat(vec![pu.clone(), x.clone()], column);
    let b = Tensor::cat(vec![x.clone(), pu.neg()], column);
    let inner = cross(&b, a.clone());
    let middle = inverse(identity(&inner) - inner * 0.5);
    x.clone() + a.matmul(middle.matmul(cross(&b, x)))
}
