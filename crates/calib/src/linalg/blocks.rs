//! Blocks of matrices: what factorisations take apart and put together.

use std::ops::Range;

use super::Mat64;

impl Mat64 {
    /// Rows `rows`, columns `cols`.
    ///
    /// # Panics
    /// If the matrix is smaller.
    pub fn block(&self, rows: Range<usize>, cols: Range<usize>) -> Self {
        let mut data = Vec::with_capacity(rows.len() * cols.len());
        rows.clone().for_each(|r| {
            data.extend_from_slice(&self.data[r * self.cols + cols.start..r * self.cols + cols.end]);
        });
        Self { rows: rows.len(), cols: cols.len(), data }
    }

    /// Rows `rows`, all columns.
    ///
    /// # Panics
    /// If there are fewer.
    pub fn row_block(&self, rows: Range<usize>) -> Self {
        self.block(rows, 0..self.cols)
    }

    /// The given rows, in that order.
    pub fn select_rows(&self, rows: &[usize]) -> Self {
        let data =
            rows.iter().flat_map(|&r| &self.data[r * self.cols..(r + 1) * self.cols]).copied().collect();
        Self { rows: rows.len(), cols: self.cols, data }
    }

    /// The given rows and columns.
    pub fn select(&self, places: &[usize]) -> Self {
        let data = places.iter().flat_map(|&r| places.iter().map(move |&c| self.at(r, c))).collect();
        Self { rows: places.len(), cols: places.len(), data }
    }

    /// Writes `block` with its upper left corner at (`row`, `col`).
    ///
    /// # Panics
    /// If it does not fit.
    pub fn place(&mut self, row: usize, col: usize, block: &Self) {
        for r in 0..block.rows {
            let start = (row + r) * self.cols + col;
            self.data[start..start + block.cols]
                .copy_from_slice(&block.data[r * block.cols..(r + 1) * block.cols]);
        }
    }

    /// Matrices of as many columns, one below the other.
    ///
    /// # Panics
    /// If there is none, or they differ in width.
    pub fn stack(parts: &[&Self]) -> Self {
        let cols = parts[0].cols;
        assert!(parts.iter().all(|part| part.cols == cols), "stacked matrices are equally wide");
        let data = parts.iter().flat_map(|part| &part.data).copied().collect();
        Self { rows: parts.iter().map(|part| part.rows).sum(), cols, data }
    }

    /// Matrices of as many rows, one beside the other; none give `[rows, 0]`.
    ///
    /// # Panics
    /// If one has another number of rows.
    pub fn beside(rows: usize, parts: &[Self]) -> Self {
        let mut out = Self::zeros(rows, parts.iter().map(|part| part.cols).sum());
        let mut col = 0;
        for part in parts {
            assert_eq!(part.rows, rows, "matrices side by side are equally tall");
            out.place(0, col, part);
            col += part.cols;
        }
        out
    }

    /// A block-diagonal matrix of two blocks.
    pub fn diagonal_blocks(first: &Self, second: &Self) -> Self {
        let mut out = Self::zeros(first.rows + second.rows, first.cols + second.cols);
        out.place(0, 0, first);
        out.place(first.rows, first.cols, second);
        out
    }

    /// Multiplies every number.
    pub fn scale(&mut self, by: f64) {
        self.data.iter_mut().for_each(|x| *x *= by);
    }

    /// Adds `other`.
    ///
    /// # Panics
    /// If the sizes differ.
    pub fn add(&mut self, other: &Self) {
        assert_eq!((self.rows, self.cols), (other.rows, other.cols), "sizes of a sum");
        self.data.iter_mut().zip(&other.data).for_each(|(a, b)| *a += b);
    }

    /// Subtracts `other`.
    ///
    /// # Panics
    /// If the sizes differ.
    pub fn subtract(&mut self, other: &Self) {
        assert_eq!((self.rows, self.cols), (other.rows, other.cols), "sizes of a difference");
        self.data.iter_mut().zip(&other.data).for_each(|(a, b)| *a -= b);
    }

    /// The mean of itself and its transpose.
    pub fn symmetrised(mut self) -> Self {
        for r in 0..self.rows {
            for c in 0..r {
                let mean = 0.5 * (self.at(r, c) + self.at(c, r));
                self.data[r * self.cols + c] = mean;
                self.data[c * self.cols + r] = mean;
            }
        }
        self
    }

    /// Copies the lower triangle to the upper.
    pub fn mirror_lower(&mut self) {
        for r in 0..self.rows {
            for c in 0..r {
                self.data[c * self.cols + r] = self.at(r, c);
            }
        }
    }

    /// The diagonal.
    pub fn diagonal(&self) -> Vec<f64> {
        (0..self.rows.min(self.cols)).map(|i| self.at(i, i)).collect()
    }

    /// The sum of the diagonal.
    pub fn trace(&self) -> f64 {
        self.diagonal().iter().sum()
    }

    /// Adds `share` of the mean diagonal to the diagonal, at least the smallest positive number.
    pub fn add_ridge(&mut self, share: f64) {
        let ridge = (share * self.trace() / self.rows.max(1) as f64).max(f64::MIN_POSITIVE);
        (0..self.rows).for_each(|i| self.data[i * self.cols + i] += ridge);
    }

    /// `self · T⁻¹` for an upper triangular `T`; a direction that `T` annihilates gives zeros.
    ///
    /// # Panics
    /// If the sizes disagree.
    pub fn over_triangle(&self, t: &Self) -> Self {
        assert!(t.rows == t.cols && self.cols == t.rows, "sizes of a triangular system");
        let largest = t.diagonal().into_iter().fold(0.0, |m: f64, x| m.max(x.abs()));
        let mut out = self.clone();
        for row in out.data.chunks_exact_mut(t.cols.max(1)) {
            for c in 0..t.cols {
                let sum: f64 = (0..c).map(|k| row[k] * t.at(k, c)).sum();
                let pivot = t.at(c, c);
                row[c] = if pivot.abs() > 1e-12 * largest { (row[c] - sum) / pivot } else { 0.0 };
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linalg::qr;

    #[test]
    fn blocks_are_put_back_where_they_were() {
        let m = Mat64::random(4, 5, 1);
        let top = Mat64::beside(2, &[m.block(0..2, 0..3), m.block(0..2, 3..5)]);
        assert_eq!(Mat64::stack(&[&top, &m.row_block(2..4)]), m);
        assert_eq!(m.select_rows(&[3, 0]).data[..5], m.data[15..]);
        assert_eq!(Mat64::beside(3, &[]).data, [0.0; 0]);
    }

    #[test]
    fn a_triangle_is_divided_out() {
        let a = Mat64::random(6, 4, 2);
        let (q, r) = qr(&a);
        let back = a.over_triangle(&r);
        let worst = back.data.iter().zip(&q.data).map(|(x, y)| (x - y).abs()).fold(0.0, f64::max);
        assert!(worst < 1e-12, "{worst}");
    }

    #[test]
    fn a_dead_direction_of_a_triangle_gives_zeros() {
        let t = Mat64 { rows: 2, cols: 2, data: vec![2.0, 1.0, 0.0, 0.0] };
        assert_eq!(Mat64::identity(2).over_triangle(&t).data, [0.5, 0.0, 0.0, 0.0]);
    }
}
