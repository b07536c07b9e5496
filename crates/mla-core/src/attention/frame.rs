//! What every layer of one pass shares: positions, rotations and what each query may see.

use std::collections::BTreeMap;

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
    rotations: Option<Rotations>,
    sight: BTreeMap<Option<usize>, Sight>,
    windows: Vec<Option<usize>>,
}

#[derive(Clone, Debug)]
struct Rotations {
    queries: Rotation,
    everything: Rotation,
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
        let rotations = rope.map(|table| {
            let rows = |start, count| match padding.is_none() {
                true => table.span(start, count),
                false => table.gather(padding.positions(start, count), padding.batch()),
            };
            Rotations { queries: rows(past, t_q), everything: rows(0, past + t_q) }
        });
        let mut sight = BTreeMap::new();
        for &window in &windows {
            sight.entry(window).or_insert_with(|| Sight::new(window, padding, past, t_q, device));
        }
        Self { past, t_q, rotations, sight, windows }
    }

    /// Columns that were there before this pass.
    pub fn past(&self) -> usize {
        self.past
    }

    /// Columns of this pass.
    pub fn t_q(&self) -> usize {
        self.t_q
    }

    /// Rotates the heads of this pass's columns (identity for learned positions).
    pub(super) fn rotate(&self, x: Tensor<4>) -> Tensor<4> {
        match &self.rotations {
            Some(rotations) => rotations.queries.apply(x),
            None => x,
        }
    }

    /// Rotates the heads of all columns, past ones too (identity for learned positions).
    pub(super) fn rotate_everything(&self, x: Tensor<4>) -> Tensor<4> {
        match &self.rotations {
            Some(rotations) => rotations.everything.apply(x),
            None => x,
        }
    }

    pub(super) fn sight(&self, layer: usize) -> &Sight {
        &self.sight[&self.windows[layer]]
    }
}

impl Sight {
    fn new(window: Option<usize>, padding: &Padding, past: usize, t_q: usize, device: &Device) -> Self {
        let t_kv = past + t_q;
        let window = window.filter(|&window| window < t_kv);
        if padding.is_none() && window.is_none() {
            return Sight::Causal;
        }
        let rows = if padding.is_none() { &padding.left[..1] } else { &padding.left[..] };
        let mut hidden = Vec::with_capacity(rows.len() * t_q * t_kv);
        for &left in rows {
            for query in past..t_kv {
                let first = window.map_or(left, |window| left.max((query + 1).saturating_sub(window)));
                hidden.extend((0..t_kv).map(|key| key < first || key > query));
            }
        }
        let hidden = TensorData::new(hidden, [rows.len(), 1, t_q, t_kv]);
        Sight::Hidden(Box::new(Tensor::from_data(hidden, device)))
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
        let frame = Frame::new(vec![Some(2), None], None, &Padding::none(1), 1, 2, &Device::flex());
        assert_eq!(hidden(frame.sight(0)), [false, false, true, true, false, false]);
        assert!(matches!(frame.sight(1), Sight::Causal));
    }

    #[test]
    fn padding_is_hidden_and_shifts_positions() {
        let padding = Padding::left(vec![0, 2]);
        assert_eq!(padding.positions(1, 3), [1, 2, 3, 0, 0, 1]);
        let frame = Frame::new(vec![None], None, &padding, 2, 1, &Device::flex());
        assert_eq!(hidden(frame.sight(0)), [false, false, false, true, true, false]);
    }

    #[test]
    fn a_window_longer_than_the_sequence_is_no_window() {
        let frame = Frame::new(vec![Some(8)], None, &Padding::none(1), 4, 4, &Device::flex());
        assert!(matches!(frame.sight(0), Sight::Causal));
    }
}
