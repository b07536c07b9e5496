//! In a build without the CPU backend its kernel never applies.

use burn::tensor::Tensor;

use super::cost::Paths;
use super::frame::Frame;
use super::latent::LatentAttention;
use super::scores::Scores;
use super::tiled::Asked;
use crate::cache::Memory;

pub(super) const TILE: usize = 128;

impl LatentAttention {
    pub(super) fn heads_on_host(
        &self,
        _paths: Paths,
        _tile: usize,
        _q: &Asked,
        _frame: &Frame,
        _layer: usize,
        _memory: &Memory<'_>,
    ) -> Option<Tensor<3>> {
        None
    }
}

pub(super) fn attend_cached(
    _scores: &Scores,
    _q: Tensor<4>,
    _k: &Tensor<4>,
    _v: &Tensor<4>,
    _first: usize,
    _frame: &Frame,
    _layer: usize,
) -> Option<Tensor<4>> {
    None
}
