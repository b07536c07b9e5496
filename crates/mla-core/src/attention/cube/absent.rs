//! In a build with neither CUDA nor wgpu their kernel never applies.

use burn::tensor::Tensor;

use super::cost::Paths;
use super::frame::Frame;
use super::latent::LatentAttention;
use super::tiled::Asked;
use crate::cache::Memory;

impl LatentAttention {
    pub(super) fn suits_cubes(&self, _paths: Paths, _q: &Tensor<3>) -> bool {
        false
    }

    pub(super) fn heads_on_cubes(
        &self,
        _q: &Asked,
        _frame: &Frame,
        _layer: usize,
        _memory: &Memory<'_>,
    ) -> Option<Tensor<3>> {
        None
    }
}
