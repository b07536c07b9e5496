//! Products and norms of the matrices in a tensor's last two dimensions; what stands before them is a batch.

use burn::tensor::Tensor;

/// The last two dimensions exchanged.
pub(crate) fn transpose<const D: usize>(a: Tensor<D>) -> Tensor<D> {
    let [row, column] = axes::<D>();
    a.swap_dims(row, column)
}

/// `aᵀ b`.
pub(crate) fn cross<const D: usize>(a: &Tensor<D>, b: Tensor<D>) -> Tensor<D> {
    transpose(a.clone()).matmul(b)
}

/// `(a + aᵀ) / 2`.
pub(crate) fn symmetric<const D: usize>(a: Tensor<D>) -> Tensor<D> {
    (a.clone() + transpose(a)) * 0.5
}

/// The identity of the size of square `a`, broadcast over the batch.
pub(crate) fn identity<const D: usize>(a: &Tensor<D>) -> Tensor<D> {
    let [row, _] = axes::<D>();
    Tensor::<2>::eye(a.dims()[row], &a.device()).cast(a.dtype()).unsqueeze::<D>()
}

/// `Σ a²` over each matrix: `[.., 1, 1]`.
pub(crate) fn norm_squared<const D: usize>(a: Tensor<D>) -> Tensor<D> {
    // As a product of a row and a column it reads the matrix once and makes nothing of its size.
    let [row, column] = axes::<D>();
    let mut shape = a.dims();
    shape[column] *= shape[row];
    shape[row] = 1;
    let flat = a.reshape(shape);
    flat.clone().matmul(flat.swap_dims(row, column))
}

/// The norm of the longest of the batch; of a vector or a number its own.
pub(crate) fn length<const D: usize>(a: &Tensor<D>) -> f64 {
    match D {
        0 | 1 => (a.clone() * a.clone()).sum().into_scalar::<f64>(),
        _ => largest(norm_squared(a.clone())),
    }
    .sqrt()
}

/// `Σ a` over each matrix: `[.., 1, 1]`.
pub(crate) fn sum<const D: usize>(a: Tensor<D>) -> Tensor<D> {
    let [row, column] = axes::<D>();
    a.sum_dim(column).sum_dim(row)
}

/// The largest number of all, on the host.
pub(crate) fn largest<const D: usize>(a: Tensor<D>) -> f64 {
    a.max().into_scalar::<f64>()
}

/// `max |a − 1|` over the whole batch, with 1 the identity.
pub(crate) fn off_identity<const D: usize>(a: &Tensor<D>) -> f64 {
    largest((a.clone() - identity(a)).abs())
}

/// The relative rounding error of a number of the tensor's type.
pub(crate) fn epsilon<const D: usize>(a: &Tensor<D>) -> f64 {
    a.dtype().finfo().map_or(f64::from(f32::EPSILON), |info| info.epsilon)
}

/// Of rows and of columns.
///
/// # Panics
/// If the tensor has no two dimensions.
pub(crate) fn axes<const D: usize>() -> [usize; 2] {
    let column =
        D.checked_sub(1).filter(|&column| column > 0).expect("a point of a matrix manifold is a matrix");
    [column - 1, column]
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::{DType, Device};

    #[test]
    fn an_identity_has_the_type_and_the_rank_of_its_model() {
        let device = Device::flex();
        let batch = Tensor::<3>::zeros([2, 3, 3], &device).cast(DType::F64);
        let one = identity(&batch);
        assert_eq!((one.dims(), one.dtype()), ([1, 3, 3], DType::F64));
        assert_eq!(off_identity(&(batch + one)), 0.0);
    }

    #[test]
    fn norms_are_of_each_matrix_by_itself() {
        let device = Device::flex();
        let batch = Tensor::<3>::from_data([[[1.0, 2.0]], [[3.0, 4.0]]], &device);
        let norms = norm_squared(batch);
        assert_eq!(norms.dims(), [2, 1, 1]);
        assert_eq!(norms.into_data().try_into_vec::<f32>().expect("f32"), [5.0, 25.0]);
    }

    #[test]
    #[should_panic(expected = "is a matrix")]
    fn a_vector_is_no_matrix() {
        axes::<1>();
    }
}
