//! A few rows times a weight: what a decoding step does in every layer.
//!
//! It reads each weight once and does little with it, so it can be as fast as memory is read. The backend's general product
//! takes one row on one thread; here a weight is cut into parts that lie apart in memory, each of which a thread reads from
//! its start to its end. (Parts of columns, which every row of the weight jumps into anew, are read half as fast.) The cut
//! depends on the weight alone, so that any number of threads that shares a product gives the same numbers.
//!
//! A weight of 16-bit numbers is half as long to read, and each number is widened in a register. With many rows it is widened
//! [a tile at a time](super::wide).

use std::ops::Range;

use burn::tensor::{DType, Tensor, TensorData};
use half::{bf16, f16};
use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use super::operand::{Operand, Rows};
use super::stored::Stored;
use super::{rows, wide};

/// Rows up to which a weight is read as it lies; with more the backend's product, which packs it, is faster.
const FEW: usize = 8;
/// Numbers of a weight, about, that a part has at least.
const PART: usize = 1 << 17;
/// Rows of a weight that are read beside each other: with fewer, sums go to memory and back more often, with more, the processor
/// no longer foresees what is read next.
const STREAMS: usize = 8;
/// Parts at most: their sums have to be added up.
const PARTS: usize = 16;

/// `x W`. `None` where the tensors are not the CPU's, or are f32 with many rows, for which the backend's product is the faster one.
///
/// # Shapes
/// - `x`: `[rows, d_in]`, `weight`: `[d_in, d_out]`, f32 or 16 bits → `[rows, d_out]`
pub(crate) fn product(x: &Tensor<2>, weight: &Tensor<2>) -> Option<Tensor<2>> {
    on_slices::<Plain>(x, weight)
}

/// `x Wᵀ`. `None` as for [`product`].
///
/// # Shapes
/// - `x`: `[rows, d_in]`, `weight`: `[d_out, d_in]`, f32 or 16 bits → `[rows, d_out]`
pub(crate) fn product_transposed(x: &Tensor<2>, weight: &Tensor<2>) -> Option<Tensor<2>> {
    on_slices::<Transposed>(x, weight)
}

/// The product of a matrix and a weight, row-major.
trait Product {
    /// With a few rows.
    fn few<T: Stored>(x: Rows<'_>, weight: Rows<'_, T>) -> Vec<f32>;

    /// With many.
    fn many<T: Stored>(x: Rows<'_>, weight: Rows<'_, T>) -> Vec<f32>;
}

/// `x W`.
struct Plain;

impl Product for Plain {
    fn few<T: Stored>(x: Rows<'_>, weight: Rows<'_, T>) -> Vec<f32> {
        let count = x.count * weight.width;
        let sum = |(part, out): (Range<usize>, &mut [f32])| {
            pulp::Arch::new().dispatch(Sum { x: x.columns(part.clone()), weight: weight.span(part), out });
        };
        let parts: Vec<_> = parts(weight).collect();
        let mut out = vec![0.0; parts.len() * count];
        if let [part] = &parts[..] {
            sum((part.clone(), &mut out));
        } else {
            parts.into_par_iter().zip(out.par_chunks_mut(count.max(1))).for_each(sum);
            let (total, others) = out.split_at_mut(count);
            for other in others.chunks_exact(count) {
                total.iter_mut().zip(other).for_each(|(x, y)| *x += y);
            }
            out.truncate(count);
        }
        out
    }

    fn many<T: Stored>(x: Rows<'_>, weight: Rows<'_, T>) -> Vec<f32> {
        wide::product(x, weight)
    }
}

/// `x Wᵀ`.
struct Transposed;

impl Product for Transposed {
    fn few<T: Stored>(x: Rows<'_>, weight: Rows<'_, T>) -> Vec<f32> {
        let dots = |part: Range<usize>| {
            let mut out = vec![0.0; x.count * part.len()];
            pulp::Arch::new().dispatch(Dots { x, weight: weight.span(part), out: &mut out });
            out
        };
        let parts: Vec<_> = parts(weight).collect();
        if let [part] = &parts[..] {
            return dots(part.clone());
        }
        let found: Vec<_> = parts.into_par_iter().map(dots).collect();
        let row = |row: usize| found.iter().map(move |part| (part, part.len() / x.count, row));
        let out = (0..x.count).flat_map(row).flat_map(|(part, width, row)| &part[row * width..][..width]);
        out.copied().collect()
    }

    fn many<T: Stored>(x: Rows<'_>, weight: Rows<'_, T>) -> Vec<f32> {
        wide::product_transposed(x, weight)
    }
}

/// The product of slices as a tensor.
fn on_slices<P: Product>(x: &Tensor<2>, weight: &Tensor<2>) -> Option<Tensor<2>> {
    fn either<P: Product, T: Stored>(x: Rows<'_>, weight: Rows<'_, T>) -> Vec<f32> {
        if x.count <= FEW { P::few(x, weight) } else { P::many(x, weight) }
    }
    let ([count, _], dtype) = (x.dims(), weight.dtype());
    if count == 0 || (dtype == DType::F32 && count > FEW) {
        return None;
    }
    let (rows, weight) = (Operand::rows(x)?, Operand::of(weight)?);
    let rows = rows.at(&[]);
    let out = match dtype {
        DType::F32 => P::few(rows, weight.rows_at::<f32>(&[])),
        DType::BF16 => either::<P, bf16>(rows, weight.rows_at(&[])),
        DType::F16 => either::<P, f16>(rows, weight.rows_at(&[])),
        _ => return None,
    };
    let width = out.len() / count;
    Some(Tensor::from_data(TensorData::new(out, [count, width]), &x.device()))
}

/// Rows of a weight, cut into parts of as many each, whole streams.
fn parts<T>(weight: Rows<'_, T>) -> impl Iterator<Item = Range<usize>> {
    let parts = (weight.count * weight.width / PART).next_power_of_two().min(PARTS);
    let rows = weight.count.div_ceil(parts).next_multiple_of(STREAMS);
    (0..weight.count).step_by(rows).map(move |start| start..weight.count.min(start + rows))
}

/// `out + x W`, row-major.
struct Sum<'a, T> {
    x: Rows<'a>,
    weight: Rows<'a, T>,
    out: &'a mut [f32],
}

impl<T: Stored> WithSimd for Sum<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { x, weight, out } = self;
        for start in (0..weight.count).step_by(STREAMS) {
            let span = start..weight.count.min(start + STREAMS);
            rows::few_mix(simd, x.columns(span.clone()), weight.span(span), out);
        }
    }
}

/// `x Wᵀ`, row-major.
struct Dots<'a, T> {
    x: Rows<'a>,
    weight: Rows<'a, T>,
    out: &'a mut [f32],
}

impl<T: Stored> WithSimd for Dots<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        rows::few_scores(simd, self.x, self.weight, self.out, self.weight.count);
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, Distribution, Tensor};

    use super::*;

    #[test]
    fn a_few_rows_times_a_weight_are_the_backends_product() {
        let device = Device::flex();
        device.seed(1);
        let random =
            |rows, columns| Tensor::<2>::random([rows, columns], Distribution::Normal(0.0, 1.0), &device);
        let two = rayon::ThreadPoolBuilder::new().num_threads(2).build().expect("a pool");
        // Fewer columns than a vector, several parts, odd ends.
        for (rows, d_in, d_out) in [(1, 1, 1), (1, 7, 3), (1, 300, 2500), (3, 2501, 129), (FEW, 1009, 513)] {
            let (x, weight) = (random(rows, d_in), random(d_in, d_out));
            let right = x.clone().matmul(weight.clone());
            let turned = Tensor::from_data(weight.clone().transpose().into_data(), &device);
            let found = two.install(|| [product(&x, &weight), product_transposed(&x, &turned)]);
            for found in found {
                let gap: f32 = (found.expect("on the CPU") - right.clone()).abs().max().into_scalar();
                assert!(gap < 1e-3, "{rows} × {d_in} × {d_out}: {gap}");
            }
        }
        assert!(product(&random(FEW + 1, 4), &random(4, 4)).is_none());
        assert!(product(&random(2, 4), &random(4, 4).transpose()).is_none());
    }

    #[test]
    fn a_weight_in_16_bits_gives_what_it_gives_widened() {
        let device = Device::flex();
        device.seed(2);
        let random =
            |rows, columns| Tensor::<2>::random([rows, columns], Distribution::Normal(0.0, 1.0), &device);
        let turned =
            |x: &Tensor<2>| Tensor::<2>::from_data(x.clone().transpose().into_data(), (&device, x.dtype()));
        for dtype in [DType::BF16, DType::F16] {
            for (rows, d_in, d_out) in [
                (1, 1, 1),
                (1, 300, 2500),
                (3, 2501, 129),
                (FEW, 1009, 513),
                (FEW + 1, 7, 3),
                (40, 1100, 600),
            ] {
                let (x, weight) = (random(rows, d_in), random(d_in, d_out).cast(dtype));
                let wide = weight.clone().cast(DType::F32);
                let right = x.clone().matmul(wide.clone());
                let found = [product(&x, &weight), product_transposed(&x, &turned(&weight))];
                for found in found.map(|found| found.expect("on the CPU")) {
                    let gap: f32 = (found - right.clone()).abs().max().into_scalar();
                    assert!(gap < 1e-3, "{dtype:?} {rows} × {d_in} × {d_out}: {gap}");
                }
                // A few rows meet the same numbers in the same order.
                if rows <= FEW {
                    let [narrow, wide] = [&weight, &wide].map(|w| product(&x, w).expect("few").into_data());
                    assert_eq!(narrow, wide, "{dtype:?} {rows} × {d_in} × {d_out}");
                }
            }
        }
    }

    #[test]
    fn any_number_of_threads_gives_the_same_bits() {
        let device = Device::flex();
        let random = |rows, columns| Tensor::<2>::random([rows, columns], Distribution::Default, &device);
        // Several parts, so that there is something to share.
        let (weight, turned) = (random(500, 2000), random(2000, 500));
        for rows in [1, 2, FEW] {
            let x = random(rows, 500);
            let with = |threads: usize| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool");
                let found = pool.install(|| [product(&x, &weight), product_transposed(&x, &turned)]);
                found.map(|found| found.expect("on the CPU, whatever the number of threads").into_data())
            };
            let one = with(1);
            for threads in [2, 3, 5] {
                assert_eq!(with(threads), one, "{rows} row(s), {threads} threads");
            }
        }
    }
}
