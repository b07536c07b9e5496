//! Padding at the left of a batch's sequences.

/// How many columns at the left of each sequence of a batch are padding.
///
/// Padded columns are never seen by others; a sequence's first real token stands at position 0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Padding {
    left: Vec<usize>,
}

impl Padding {
    /// No padding in any of `batch` sequences.
    pub fn none(batch: usize) -> Self {
        Self { left: vec![0; batch] }
    }

    /// Padding columns a sequence.
    pub fn left(columns: Vec<usize>) -> Self {
        Self { left: columns }
    }

    /// Number of sequences.
    pub fn batch(&self) -> usize {
        self.left.len()
    }

    /// Padding columns of each sequence.
    pub fn columns(&self) -> &[usize] {
        &self.left
    }

    /// Columns of each sequence that are not padding, of a batch of `columns`.
    pub fn lengths(&self, columns: usize) -> Vec<usize> {
        self.left.iter().map(|&left| columns.saturating_sub(left)).collect()
    }

    /// Whether no sequence has any.
    pub fn is_none(&self) -> bool {
        self.left.iter().all(|&columns| columns == 0)
    }

    /// Positions of columns `start..start + count`, row-major `[batch, count]`; 0 in the padding.
    pub fn positions(&self, start: usize, count: usize) -> Vec<i64> {
        let row = |left: usize| (start..start + count).map(move |column| column.saturating_sub(left) as i64);
        self.left.iter().flat_map(|&left| row(left)).collect()
    }
}
