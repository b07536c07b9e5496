//! What every layer of one pass shares: positions, rotations and what each query may see.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::OnceLock;

use burn::tensor::{Bool, Device, Tensor, TensorData};

use crate::positions::{Padding, RopeTable, Rotation};

/// How the queries of a layer reach the columns of a pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reach {
    /// A query sees itself and the `window − 1` columns before it; `None` sees all.
    pub window: Option<usize>,
    /// Which of the pass's rotary tables turns queries and keys; `None` leaves them.
    pub rope: Option<usize>,
}

/// One pass over `t_q` new columns that follow `past` earlier ones.
#[derive(Clone, Debug)]
pub struct Frame {
    past: usize,
    t_q: usize,
    padding: Padding,
    /// The rotary tables of the model.
    tables: Vec<RopeTable>,
    /// What each of them makes of this pass's columns.
    rotations: Vec<Rotation>,
    /// One entry a layer.
    layers: Vec<Reach>,
    /// What each window lets the queries see of all columns that are kept, and the first of those; made when a layer first asks.
    sight: BTreeMap<Option<usize>, OnceLock<(usize, Sight)>>,
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
    /// `layers` has one entry a layer; each of the `tables` covers `past + t_q` positions.
    pub fn new(
        layers: Vec<Reach>,
        tables: &[RopeTable],
        padding: &Padding,
        past: usize,
        t_q: usize,
        device: &Device,
    ) -> Self {
        let sight = layers.iter().map(|layer| (layer.window, OnceLock::new())).collect();
        let mut frame = Self {
            past,
            t_q,
            padding: padding.clone(),
            tables: tables.to_vec(),
            rotations: Vec::new(),
            layers,
            sight,
            device: device.clone(),
        };
        frame.rotations = tables.iter().map(|table| frame.rotation_of(table, past..past + t_q)).collect();
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

    /// Rotates the heads of this pass's columns, as a layer does.
    ///
    /// # Shapes
    /// - `x`: `[batch, heads, t_q, d_head]` → the same
    pub(super) fn rotate(&self, layer: usize, x: Tensor<4>) -> Tensor<4> {
        match self.layers[layer].rope {
            Some(rope) => self.rotations[rope].apply(x),
            None => x,
        }
    }

    /// The rotation of this pass's columns by one of the model's rotary embeddings.
    pub(super) fn rotation(&self, rope: usize) -> &Rotation {
        &self.rotations[rope]
    }

    /// Rotates the heads of any columns, past ones too, as a layer does.
    ///
    /// # Shapes
    /// - `x`: `[batch, heads, columns, d_head]` → the same
    pub(super) fn rotate_columns(&self, layer: usize, x: Tensor<4>, columns: Range<usize>) -> Tensor<4> {
        match self.table(layer) {
            Some(table) => self.rotation_of(table, columns).apply(x),
            None => x,
        }
    }

    fn rotation_of(&self, table: &RopeTable, columns: Range<usize>) -> Rotation {
        match self.padding.is_none() {
            true => table.span(columns.start, columns.len()),
            false => table.gather(self.padding.positions(columns.start, columns.len()), self.padding.batch()),
        }
    }

    /// The rotations of every position in a layer; `None` where it rotates nothing.
    pub(super) fn table(&self, layer: usize) -> Option<&RopeTable> {
        self.layers[layer].rope.map(|rope| &self.tables[rope])
    }

    /// How far back a layer's queries see.
    pub(super) fn window(&self, layer: usize) -> Option<usize> {
        self.layers[layer].window
    }

    /// The padding of the batch.
    pub(super) fn padding(&self) -> &Padding {
        &self.padding
    }

    /// What the queries of a layer see of the columns from `first` on.
    ///
    /// # Panics
    /// If another layer of the same window asked for other columns.
    pub(super) fn sight(&self, layer: usize, first: usize) -> &Sight {
        let window = self.layers[layer].window;
        let (found, sight) = self.sight[&window].get_or_init(|| {
            if first == 0 && self.padding.is_none() && window.is_none_or(|window| window >= self.t_kv()) {
                return (first, Sight::Causal);
            }
            (first, Sight::Hidden(Box::new(self.mask(window, first..self.t_kv()))))
        });
        assert_eq!(*found, first, "layers of one window keep the same columns");
        sight
    }

    /// The columns that some query of a layer may see: none before them is ever read.
    pub(super) fn visible(&self, layer: usize) -> Range<usize> {
        let padded = self.padding.columns().iter().copied().min().unwrap_or(0).min(self.past);
        let first = self.layers[layer].window.map_or(0, |window| (self.past + 1).saturating_sub(window));
        padded.max(first)..self.t_kv()
    }

    /// What is hidden of some columns from some query of a layer, `true` where it is; `None` if every query sees them all.
    ///
    /// # Shapes
    /// - `[batch or 1, 1, t_q, columns]`
    pub(super) fn hidden(&self, layer: usize, columns: Range<usize>) -> Option<Tensor<4, Bool>> {
        let window = self.layers[layer].window;
        let padded = self.padding.columns().iter().copied().max().unwrap_or(0);
        let last_first = window.map_or(0, |window| self.t_kv().saturating_sub(window)).max(padded);
        let seen = columns.start >= last_first && columns.end <= self.past + 1;
        (!seen).then(|| self.mask(window, columns))
    }

    fn mask(&self, window: Option<usize>, columns: Range<usize>) -> Tensor<4, Bool> {
        let left = self.padding.columns();
        let rows = if self.padding.is_none() { &left[..1] } else { left };
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

    fn windows(windows: &[Option<usize>]) -> Vec<Reach> {
        windows.iter().map(|&window| Reach { window, rope: None }).collect()
    }

    fn hidden(sight: &Sight) -> Vec<bool> {
        match sight {
            Sight::Causal => panic!("a plain causal pass hides nothing else"),
            Sight::Hidden(mask) => mask.as_ref().clone().into_data().iter::<bool>().collect(),
        }
    }

    #[test]
    fn a_window_hides_what_lies_before_it() {
        let frame = Frame::new(windows(&[Some(2), None]), &[], &Padding::none(1), 1, 2, &Device::default());
        assert_eq!(hidden(frame.sight(0, 0)), [false, false, true, true, false, false]);
        assert!(matches!(frame.sight(1, 0), Sight::Causal));
    }

    #[test]
    fn padding_is_hidden_and_shifts_positions() {
        let padding = Padding::left(vec![0, 2]);
        assert_eq!(padding.positions(1, 3), [1, 2, 3, 0, 0, 1]);
        let frame = Frame::new(windows(&[None]), &[], &padding, 2, 1, &Device::default());
        assert_eq!(hidden(frame.sight(0, 0)), [false, false, false, true, true, false]);
    }

    #[test]
    fn a_window_longer_than_the_sequence_is_no_window() {
        let frame = Frame::new(windows(&[Some(8)]), &[], &Padding::none(1), 4, 4, &Device::default());
        assert!(matches!(frame.sight(0, 0), Sight::Causal));
    }

    #[test]
    fn a_tile_that_every_query_sees_needs_no_mask() {
        let bits = |mask: Tensor<4, Bool>| mask.into_data().iter::<bool>().collect::<Vec<_>>();
        let frame = Frame::new(windows(&[None, Some(3)]), &[], &Padding::none(1), 4, 2, &Device::default());
        assert_eq!((frame.visible(0), frame.visible(1)), (0..6, 2..6));
        assert!(frame.hidden(0, 0..5).is_none());
        assert_eq!(frame.hidden(0, 4..6).map(bits), Some(vec![false, true, false, false]));
        assert!(frame.hidden(1, 3..5).is_none());
        assert_eq!(frame.hidden(1, 2..4).map(bits), Some(vec![false, false, true, false]));
        let frame = Frame::new(windows(&[None]), &[], &Padding::left(vec![1, 3]), 4, 1, &Device::default());
        assert_eq!(frame.visible(0), 1..5);
        assert!(frame.hidden(0, 3..5).is_none());
        assert_eq!(frame.hidden(0, 2..4).map(bits), Some(vec![false, false, true, false]));
    }

    #[test]
    fn tiles_of_a_mask_are_the_mask() {
        let padding = Padding::left(vec![0, 2]);
        let frame = Frame::new(windows(&[Some(3)]), &[], &padding, 5, 3, &Device::default());
        let whole = hidden(frame.sight(0, 0));
        for (place, &hidden) in whole.iter().enumerate() {
            let (row, column) = (place / 8, place % 8);
            let tile = frame.hidden(0, column..column + 1);
            let here = tile.is_some_and(|tile| tile.into_data().iter::<bool>().nth(row) == Some(true));
            assert_eq!(here, hidden, "row {row}, column {column}");
        }
    }
}
