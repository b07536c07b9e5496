//! What every layer of one pass shares: positions, rotations and what each query may see.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::OnceLock;

use burn::tensor::{Bool, Device, Tensor, TensorData};

use super::rope::{RopeTable, Rotation};

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

    fn is_none(&self) -> bool {
        self.left.iter().all(|&columns| columns == 0)
    }

    /// Positions of columns `start..start + count`, row-major `[batch, count]`; 0 in the padding.
    pub fn positions(&self, start: usize, count: usize) -> Vec<i64> {
        let row = |left: usize| (start..start + count).map(move |column| column.saturating_sub(left) as i64);
        self.left.iter().flat_map(|&left| row(left)).collect()
    }
}

/// One pass over `t_q` new columns that follow `past` earlier ones.
#[derive(Clone, Debug)]
pub struct Frame {
    past: usize,
    t_q: usize,
    padding: Padding,
    rope: Option<RopeTable>,
    /// The rotation of this pass's columns.
    rotation: Option<Rotation>,
    /// One entry a layer.
    windows: Vec<Option<usize>>,
    /// What each window lets the queries see of all columns, made when a layer first asks.
    sight: BTreeMap<Option<usize>, OnceLock<Sight>>,
    device: Device,
}

/// Which columns the queries of a layer may see.
#[derive(Clone, Debug)]
pub enum Sight {
    /// Every column up to and including its own.
    Causal,
    /// `true` where a column is hidden: `[batch or 1, 1, t_q, t_kv]`.
    Hidden(Box<Tensor<4, Bool>>),
}

impl Frame {
    /// Lays out a pass.
    ///
    /// `windows` has one entry a layer; `rope` covers `past + t_q` positions, or is `None` for learned positions.
    pub fn new(
        windows: Vec<Option<usize>>,
        rope: Option<&RopeTable>,
        padding: &Padding,
        past: usize,
        t_q: usize,
        device: &Device,
    ) -> Self {
        let sight = windows.iter().map(|&window| (window, OnceLock::new())).collect();
        let mut frame = Self {
            past,
            t_q,
            padding: padding.clone(),
            rope: rope.cloned(),
            rotation: None,
            windows,
            sight,
            device: device.clone(),
        };
        frame.rotation = frame.rotation_of(past..past + t_q);
        frame
    }

    /// Columns that were there before this pass.
    pub fn past(&self) -> usize {
        self.past
    }

    /// Columns of this pass.
    pub fn t_q(&self) -> usize {
        self.t_q
    }

    /// Columns there are after this pass.
    pub fn t_kv(&self) -> usize {
        self.past + self.t_q
    }

    /// Whether queries and keys are rotated.
    pub(super) fn rotates(&self) -> bool {
        self.rope.is_some()
    }

    /// Rotates the heads of this pass's columns (identity for learned positions).
    ///
    /// # Shapes
    /// - `x`: `[batch, heads, t_q, d_head]` → the same
    pub(super) fn rotate(&self, x: Tensor<4>) -> Tensor<4> {
        match &self.rotation {
            Some(rotation) => rotation.apply(x),
            None => x,
        }
    }

    /// Rotates the heads of any columns, past ones too (identity for learned positions).
    ///
    /// # Shapes
    /// - `x`: `[batch, heads, columns, d_head]` → the same
    pub(super) fn rotate_columns(&self, x: Tensor<4>, columns: Range<usize>) -> Tensor<4> {
        match self.rotation_of(columns) {
            Some(rotation) => rotation.apply(x),
            None => x,
        }
    }

    fn rotation_of(&self, columns: Range<usize>) -> Option<Rotation> {
        let table = self.rope.as_ref()?;
        Some(match self.padding.is_none() {
            true => table.span(columns.start, columns.len()),
            false => table.gather(self.padding.positions(columns.start, columns.len()), self.padding.batch()),
        })
    }

    /// The rotations of every position.
    pub(super) fn table(&self) -> Option<&RopeTable> {
        self.rope.as_ref()
    }

    /// The rows of [`table`](Self::table) that are a sequence's.
    pub(super) fn positions_of(&self, sequence: usize) -> Range<usize> {
        self.rope.as_ref().map_or(0..0, |table| table.rows_of(sequence))
    }

    /// How far back a layer's queries see.
    pub(super) fn window(&self, layer: usize) -> Option<usize> {
        self.windows[layer]
    }

    /// The padding of the batch.
    pub(super) fn padding(&self) -> &Padding {
        &self.padding
    }

    /// What the queries of a layer see of all columns.
    pub(super) fn sight(&self, layer: usize) -> &Sight {
        let window = self.windows[layer];
        self.sight[&window].get_or_init(|| {
            if self.padding.is_none() && window.is_none_or(|window| window >= self.t_kv()) {
                return Sight::Causal;
            }
            Sight::Hidden(Box::new(self.mask(window, 0..self.t_kv())))
        })
    }

    /// The columns that some query of a layer may see: none before them is ever read.
    pub(super) fn visible(&self, layer: usize) -> Range<usize> {
        let padded = self.padding.left.iter().copied().min().unwrap_or(0).min(self.past);
        let first = self.windows[layer].map_or(0, |window| (self.past + 1).saturating_sub(window));
        padded.max(first)..self.t_kv()
    }

    /// What is hidden of some columns from some query of a layer, `true` where it is; `None` if every query sees them all.
    ///
    /// # Shapes
    /// - `[batch or 1, 1, t_q, columns]`
    pub(super) fn hidden(&self, layer: usize, columns: Range<usize>) -> Option<Tensor<4, Bool>> {
        let window = self.windows[layer];
        let padded = self.padding.left.iter().copied().max().unwrap_or(0);
        let last_first = window.map_or(0, |window| self.t_kv().saturating_sub(window)).max(padded);
        let seen = columns.start >= last_first && columns.end <= self.past + 1;
        (!seen).then(|| self.mask(window, columns))
    }

    fn mask(&self, window: Option<usize>, columns: Range<usize>) -> Tensor<4, Bool> {
        let rows = if self.padding.is_none() { &self.padding.left[..1] } else { &self.padding.left[..] };
        let mut hidden = Vec::with_capacity(rows.len() * self.t_q * columns.len());
        for &left in rows {
            for query in self.past..self.t_kv() {
                let first = window.map_or(left, |window| left.max((query + 1).saturating_sub(window)));
                hidden.extend(columns.clone().map(|key| key < first || key > query));
            }
        }
        let hidden = TensorData::new(hidden, [rows.len(), 1, self.t_q, columns.len()]);
        Tensor::from_data(hidden, &self.device)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hidden(sight: &Sight) -> Vec<bool> {
        match sight {
            Sight::Causal => panic!("a plain causal pass hides nothing else"),
            Sight::Hidden(mask) => mask.as_ref().clone().into_data().iter::<bool>().collect(),
        }
    }

    #[test]
    fn a_window_hides_what_lies_before_it() {
        let frame = Frame::new(vec![Some(2), None], None, &Padding::none(1), 1, 2, &Device::default());
        assert_eq!(hidden(frame.sight(0)), [false, false, true, true, false, false]);
        assert!(matches!(frame.sight(1), Sight::Causal));
    }

    #[test]
    fn padding_is_hidden_and_shifts_positions() {
        let padding = Padding::left(vec![0, 2]);
        assert_eq!(padding.positions(1, 3), [1, 2, 3, 0, 0, 1]);
        let frame = Frame::new(vec![None], None, &padding, 2, 1, &Device::default());
        assert_eq!(hidden(frame.sight(0)), [false, false, false, true, true, false]);
    }

    #[test]
    fn a_window_longer_than_the_sequence_is_no_window() {
        let frame = Frame::new(vec![Some(8)], None, &Padding::none(1), 4, 4, &Device::default());
        assert!(matches!(frame.sight(0), Sight::Causal));
    }

    #[test]
    fn a_tile_that_every_query_sees_needs_no_mask() {
        let bits = |mask: Tensor<4, Bool>| mask.into_data().iter::<bool>().collect::<Vec<_>>();
        let frame = Frame::new(vec![None, Some(3)], None, &Padding::none(1), 4, 2, &Device::default());
        assert_eq!((frame.visible(0), frame.visible(1)), (0..6, 2..6));
        assert!(frame.hidden(0, 0..5).is_none());
        assert_eq!(frame.hidden(0, 4..6).map(bits), Some(vec![false, true, false, false]));
        assert!(frame.hidden(1, 3..5).is_none());
        assert_eq!(frame.hidden(1, 2..4).map(bits), Some(vec![false, false, true, false]));
        let frame = Frame::new(vec![None], None, &Padding::left(vec![1, 3]), 4, 1, &Device::default());
        assert_eq!(frame.visible(0), 1..5);
        assert!(frame.hidden(0, 3..5).is_none());
        assert_eq!(frame.hidden(0, 2..4).map(bits), Some(vec![false, false, true, false]));
    }

    #[test]
    fn tiles_of_a_mask_are_the_mask() {
        let padding = Padding::left(vec![0, 2]);
        let frame = Frame::new(vec![Some(3)], None, &padding, 5, 3, &Device::default());
        let whole = hidden(frame.sight(0));
        for (place, &hidden) in whole.iter().enumerate() {
            let (row, column) = (place / 8, place % 8);
            let tile = frame.hidden(0, column..column + 1);
            let here = tile.is_some_and(|tile| tile.into_data().iter::<bool>().nth(row) == Some(true));
            assert_eq!(here, hidden, "row {row}, column {column}");
        }
    }
}
