//! The position-wise half of a block: plain, gated, or a mixture of gated experts.

use burn::module::{Module, Param};
use burn::nn::Linear;
use burn::tensor::activation::{gelu, gelu_approximate, relu, sigmoid, silu, softmax};
use burn::tensor::{Int, Tensor, TensorData};

use super::config::Activation;
use crate::host;
use crate::linear::linear;

/// The MLP of a block.
#[derive(Module, Debug)]
pub enum Mlp {
    /// `down(act(up(x)))`.
    Plain(PlainMlp),
    /// `down(act(gate(x)) · up(x))`.
    Gated(GatedMlp),
    /// A few gated experts a token.
    Experts(Experts),
}

impl Mlp {
    /// # Shapes
    /// - `x`: `[batch, t, d_model]` → the same
    pub fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let [batch, t, d_model] = x.dims();
        let tokens = x.reshape([batch * t, d_model]);
        let out = match self {
            Mlp::Plain(mlp) => mlp.forward(tokens),
            Mlp::Gated(mlp) => mlp.forward(tokens),
            Mlp::Experts(experts) => experts.forward(tokens),
        };
        out.reshape([batch, t, d_model])
    }
}

impl Activation {
    /// # Shapes
    /// - `x`: `[rows, d_ff]` → the same
    fn apply(self, x: Tensor<2>) -> Tensor<2> {
        match self {
            Activation::Silu => silu(x),
            Activation::Gelu => gelu(x),
            Activation::GeluTanh => host::gelu_tanh(&x).unwrap_or_else(|| gelu_approximate(x)),
            Activation::Relu => relu(x),
            // As a gate it has a rule of its own; by itself it is the gate's half of that.
            Activation::ClampedSwiglu { gain, limit } => {
                let x = x.clamp_max(limit);
                x.clone() * sigmoid(x * gain)
            }
        }
    }

    /// `act(gate) · up`.
    ///
    /// # Shapes
    /// - `gate`, `up`: `[rows, d_ff]` → the same
    fn gate(self, gate: Tensor<2>, up: Tensor<2>) -> Tensor<2> {
        match self {
            Activation::Silu => host::silu_gate(&gate, &up).unwrap_or_else(|| silu(gate) * up),
            Activation::ClampedSwiglu { limit, .. } => self.apply(gate) * (up.clamp(-limit, limit) + 1.0),
            Activation::Gelu | Activation::GeluTanh | Activation::Relu => self.apply(gate) * up,
        }
    }
}

/// `down(act(up(x)))`.
#[derive(Module, Debug)]
pub struct PlainMlp {
    /// `[d_model, d_ff]`.
    pub up: Linear,
    /// `[d_ff, d_model]`.
    pub down: Linear,
    /// Nonlinearity between the two.
    #[module(skip)]
    pub activation: Activation,
}

impl PlainMlp {
    fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        linear(&self.down, self.activation.apply(linear(&self.up, x)))
    }
}

/// `down(act(gate(x)) · up(x))` (Shazeer 2020).
#[derive(Module, Debug)]
pub struct GatedMlp {
    /// `[d_model, d_ff]`.
    pub gate: Linear,
    /// `[d_model, d_ff]`.
    pub up: Linear,
    /// `[d_ff, d_model]`.
    pub down: Linear,
    /// Nonlinearity of the gate.
    #[module(skip)]
    pub activation: Activation,
}

impl GatedMlp {
    fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        let (gate, up) = (linear(&self.gate, x.clone()), linear(&self.up, x));
        linear(&self.down, self.activation.gate(gate, up))
    }
}

/// Sparse mixture of gated experts (Jiang et al. 2024, §2.1): the weights of a token's `top_k` experts are the softmax
/// over all, most often renormalised over the chosen (which is the softmax over the chosen).
#[derive(Module, Debug)]
pub struct Experts {
    /// `[n_experts, d_model]`.
    pub router: Param<Tensor<2>>,
    /// `[n_experts]`.
    pub router_bias: Option<Param<Tensor<1>>>,
    /// One MLP an expert.
    pub experts: Vec<GatedMlp>,
    /// Experts that see a token.
    pub top_k: usize,
    /// Whether the weights of a token's experts add up to 1.
    pub renormalised: bool,
}

impl Experts {
    fn forward(&self, tokens: Tensor<2>) -> Tensor<2> {
        let count = tokens.dims()[0];
        let device = tokens.device();
        let scores = tokens.clone().matmul(self.router.val().transpose());
        let scores = match &self.router_bias {
            None => scores,
            Some(bias) => scores + bias.val().unsqueeze::<2>(),
        };
        let (weights, chosen) = softmax(scores, 1).topk_with_indices(self.top_k, 1);
        let weights = match self.renormalised {
            true => weights.clone() / weights.sum_dim(1),
            false => weights,
        };
        let weights = weights.reshape([(count * self.top_k) as i64]);
        let chosen: Vec<i64> = chosen.into_data().iter::<i64>().collect();

        let mut out = tokens.zeros_like();
        for (index, expert) in self.experts.iter().enumerate() {
            // `places` are flat positions in `[tokens, top_k]`: the token is the place divided by `top_k`.
            let places: Vec<i64> =
                (0..chosen.len()).filter(|&p| chosen[p] == index as i64).map(|p| p as i64).collect();
            if places.is_empty() {
                continue;
            }
            let rows: Vec<i64> = places.iter().map(|p| p / self.top_k as i64).collect();
            let index = |v: Vec<i64>| {
                let count = v.len();
                Tensor::<1, Int>::from_data(TensorData::new(v, [count]), &device)
            };
            let rows = index(rows);
            let share = weights.clone().select(0, index(places)).unsqueeze_dim::<2>(1);
            let part = expert.forward(tokens.clone().select(0, rows.clone())) * share;
            out = out.select_assign(0, rows, part, burn::tensor::IndexingUpdateOp::Add);
        }
        out
    }
}
