//! The closed choices in which decoder families differ.

use super::latents::{LatentConfig, LatentPart, LatentWidth, Serves};
use crate::attention::{Reach, ScoreConfig};
use crate::cache::CacheDtype;
use crate::positions::RopeConfig;

/// Everything that fixes a decoder's graph; weights fill it.
#[derive(Clone, Debug, PartialEq)]
pub struct DecoderConfig {
    /// Width of the residual stream.
    pub d_model: usize,
    /// Query heads a layer.
    pub n_heads: usize,
    /// Key/value heads a layer; divides `n_heads`.
    pub n_kv_heads: usize,
    /// Width of one head. Not always `d_model / n_heads`.
    pub d_head: usize,
    /// Rows of the token embedding.
    pub vocab_size: usize,
    /// Longest sequence the positions are made for.
    pub max_positions: usize,
    /// What the norms of the residual stream are.
    pub norm: NormKind,
    /// Added to the variance inside every norm.
    pub norm_eps: f64,
    /// Where a block's norms stand.
    pub block: BlockKind,
    /// How positions enter.
    pub position: PositionKind,
    /// Which projections carry a bias.
    pub biases: Biases,
    /// What the embedding, what a block adds, and the logits are multiplied by.
    pub scales: Scales,
    /// Where the output head comes from.
    pub head: HeadKind,
    /// What a cache keeps its numbers as.
    pub cache_dtype: CacheDtype,
    /// One entry a layer.
    pub layers: Vec<LayerConfig>,
}

/// The norms of a decoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormKind {
    /// LayerNorm with gain and bias (Ba et al. 2016).
    Layer,
    /// RMSNorm with gain (Zhang & Sennrich 2019).
    Rms,
    /// RMSNorm whose gain is stored less one (Gemma, Mesnard et al. 2024). Loading adds it.
    RmsPlusOne,
}

/// Where the norms of a block stand, and what its MLP reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockKind {
    /// `x + attention(norm(x))`, then `x + mlp(norm(x))` (Xiong et al. 2020).
    PreNorm,
    /// `x + norm(attention(x))`, then `x + norm(mlp(x))` (OLMo 2, Walsh et al. 2025, §3.2).
    PostNorm,
    /// Norms before and after both (Gemma 2, Riviere et al. 2024, §2).
    Sandwich,
    /// `x + attention(norm(x)) + mlp(norm'(x))` (GPT-NeoX, Black et al. 2022, §2.1).
    Parallel,
}

impl BlockKind {
    /// Whether attention and MLP read the stream through a norm.
    pub fn norms_before(self) -> bool {
        self != BlockKind::PostNorm
    }

    /// Whether what attention and MLP give goes through a norm.
    pub fn norms_after(self) -> bool {
        matches!(self, BlockKind::PostNorm | BlockKind::Sandwich)
    }
}

/// How a decoder knows where a token stands.
#[derive(Clone, Debug, PartialEq)]
pub enum PositionKind {
    /// A learned vector a position, added to the token embedding.
    Learned,
    /// Rotary embeddings of queries and keys (Su et al. 2021); a layer says which of them is its own, if any.
    Rope(Vec<RopeConfig>),
}

/// What is multiplied where; all 1 in most families.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scales {
    /// Of the token embedding (Gemma: √d_model; Granite's `embedding_multiplier`).
    pub embedding: f64,
    /// Of what attention and MLP add to the stream (Granite's `residual_multiplier`).
    pub residual: f64,
    /// Of the logits (one over Granite's `logits_scaling`).
    pub logits: f64,
    /// Logits are brought into `±cap` by `cap · tanh(logit / cap)` (Gemma 2).
    pub logit_softcap: Option<f64>,
}

impl Default for Scales {
    fn default() -> Self {
        Self { embedding: 1.0, residual: 1.0, logits: 1.0, logit_softcap: None }
    }
}

/// The MLP of a layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MlpConfig {
    /// Its form.
    pub kind: MlpKind,
    /// Its inner width; of one expert, where there are experts.
    pub d_ff: usize,
}

/// The form of an MLP.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum MlpKind {
    /// `down(act(up(x)))`.
    Plain(Activation),
    /// `down(act(gate(x)) · up(x))` (Shazeer 2020).
    Gated(Activation),
    /// Gated experts, `top_k` of `n_experts` a token (Mixtral, Jiang et al. 2024).
    Experts {
        /// Nonlinearity of each expert.
        activation: Activation,
        /// Experts a layer.
        n_experts: usize,
        /// Experts that see a token.
        top_k: usize,
        /// Whether the weights of a token's experts are made to add up to 1.
        renormalised: bool,
    },
}

/// A pointwise nonlinearity.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Activation {
    /// `x · sigmoid(x)`.
    Silu,
    /// GELU with the error function.
    Gelu,
    /// GELU by its tanh approximation (`gelu_new`, `gelu_pytorch_tanh`).
    GeluTanh,
    /// `max(x, 0)`.
    Relu,
    /// As a gate only: `gate · sigmoid(gain · gate) · (up + 1)`, the gate bounded by `limit` from above, the other input from
    /// both sides (gpt-oss 2025).
    ClampedSwiglu {
        /// The factor inside the sigmoid.
        gain: f64,
        /// The bound.
        limit: f64,
    },
}

/// Which projections carry a bias.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Biases {
    /// `W_q`, `W_k` and `W_v`.
    pub qkv: bool,
    /// `W_o`.
    pub output: bool,
    /// Every matrix of an MLP, its experts' and their router's.
    pub mlp: bool,
}

/// Where the output head comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeadKind {
    /// The token embedding, transposed.
    Tied,
    /// A matrix of its own.
    Own,
}

/// What may differ from layer to layer.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerConfig {
    /// A query sees itself and the `window − 1` positions before it; `None` sees all.
    pub window: Option<usize>,
    /// Which of the model's rotary embeddings turns queries and keys; `None` for none.
    pub rope: Option<usize>,
    /// A norm of queries and keys before they are rotated.
    pub qk_norm: Option<QkNorm>,
    /// How queries and keys become weights.
    pub scores: ScoreConfig,
    /// The MLP.
    pub mlp: MlpConfig,
    /// What the layer caches.
    pub attention: AttentionKind,
}

impl LayerConfig {
    /// A layer that sees everything, scores `q · k / √d_head`, and caches keys and values.
    pub fn plain(d_head: usize, rope: Option<usize>, mlp: MlpConfig) -> Self {
        Self {
            window: None,
            rope,
            qk_norm: None,
            scores: ScoreConfig::plain(d_head),
            mlp,
            attention: AttentionKind::Grouped,
        }
    }
}

/// What RMSNorm of queries and keys goes over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QkNorm {
    /// Each head (Qwen 3, Gemma 3).
    Head,
    /// All heads at once (OLMo 2).
    Whole,
}

/// What a layer caches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AttentionKind {
    /// Keys and values of every kv head.
    Grouped,
    /// Latents.
    Latent(LatentConfig),
}

/// How query heads share key/value heads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// Multi-head attention: a kv head for each query head.
    Mha,
    /// Grouped-query attention.
    Gqa,
    /// Multi-query attention: one kv head.
    Mqa,
}

impl std::fmt::Display for Sharing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Sharing::Mha => "MHA",
            Sharing::Gqa => "GQA",
            Sharing::Mqa => "MQA",
        })
    }
}

impl DecoderConfig {
    /// Number of layers.
    pub fn n_layers(&self) -> usize {
        self.layers.len()
    }

    /// `n_kv_heads · d_head`: numbers a token of one uncompressed K (or V).
    pub fn d_kv(&self) -> usize {
        self.n_kv_heads * self.d_head
    }

    /// How query heads share key/value heads.
    pub fn sharing(&self) -> Sharing {
        match self.n_kv_heads {
            n if n == self.n_heads => Sharing::Mha,
            1 => Sharing::Mqa,
            _ => Sharing::Gqa,
        }
    }

    /// The rotary embeddings of the model; none with learned positions.
    pub fn ropes(&self) -> &[RopeConfig] {
        match &self.position {
            PositionKind::Learned => &[],
            PositionKind::Rope(ropes) => ropes,
        }
    }

    /// The rotary embedding of a layer, if it has one.
    pub fn rope(&self, layer: usize) -> Option<&RopeConfig> {
        self.layers[layer].rope.and_then(|rope| self.ropes().get(rope))
    }

    /// How the queries of each layer reach the columns of a pass.
    pub fn reach(&self) -> Vec<Reach> {
        self.layers.iter().map(|layer| Reach { window: layer.window, rope: layer.rope }).collect()
    }

    /// Numbers a token that the latents of a layer are made of: its input, and normed keys before it.
    pub fn d_latent_input(&self, layer: usize) -> usize {
        self.d_model + if self.layers[layer].qk_norm.is_some() { self.d_kv() } else { 0 }
    }

    /// The numbers among those of [`d_latent_input`](Self::d_latent_input) that a part's `W_down` reads.
    pub fn read_by(&self, layer: usize, part: LatentPart) -> std::ops::Range<usize> {
        let all = self.d_latent_input(layer);
        match (part.serves, self.layers[layer].qk_norm) {
            (Serves::Both, _) | (_, None) => 0..all,
            (Serves::Keys, Some(_)) => 0..self.d_kv(),
            (Serves::Values, Some(_)) => self.d_kv()..all,
        }
    }

    /// How far back the cache of each layer reaches: its window, or the widest of the layers that read its latents; `None` where
    /// one of them sees all.
    pub fn retention(&self) -> Vec<Option<usize>> {
        let windows: Vec<_> = self.layers.iter().map(|layer| layer.window).collect();
        let mut reach = windows.clone();
        for (reader, window) in windows.into_iter().enumerate() {
            for read in self.reads(reader) {
                reach[read] = reach[read].zip(window).map(|(own, theirs)| own.max(theirs));
            }
        }
        reach
    }

    /// Bytes that the cache of a sequence of `tokens` takes, as they are allocated.
    pub fn cache_bytes(&self, tokens: usize) -> usize {
        let kept =
            self.retention().into_iter().map(|window| window.map_or(tokens, |window| window.min(tokens)));
        kept.enumerate().map(|(layer, kept)| self.cached_bytes(layer) * kept).sum()
    }

    /// Numbers the layer caches a token.
    pub fn cached_numbers(&self, layer: usize) -> usize {
        match &self.layers[layer].attention {
            AttentionKind::Grouped => 2 * self.d_kv(),
            AttentionKind::Latent(latent) => latent.cached_numbers(),
        }
    }

    /// The latents of a layer; `None` where it caches keys and values.
    pub fn latent(&self, layer: usize) -> Option<&LatentConfig> {
        match &self.layers[layer].attention {
            AttentionKind::Grouped => None,
            AttentionKind::Latent(latent) => Some(latent),
        }
    }

    /// The earlier layers whose latents a layer reads.
    pub fn reads(&self, layer: usize) -> Vec<usize> {
        let first = self.latent(layer).and_then(|latent| latent.reads_from).unwrap_or(layer);
        (first..layer).filter(|&earlier| self.latent(earlier).is_some()).collect()
    }

    /// Columns of a layer's cross terms of K and of V: the other half of its own latent, then [`reads`](Self::reads).
    /// `None` where it has no cross terms, or nothing to read with them.
    pub fn cross_columns(&self, layer: usize) -> Option<[usize; 2]> {
        let latent = self.latent(layer)?;
        latent.reads_from?;
        let earlier: usize = self.reads(layer).into_iter().map(|j| self.cached_numbers(j)).sum();
        match latent.width {
            LatentWidth::Split { d_latent_k, d_latent_v } => {
                Some([d_latent_v + earlier, d_latent_k + earlier])
            }
            LatentWidth::Joint { .. } => (earlier > 0).then_some([earlier; 2]),
        }
    }

    /// Bytes the layer caches a token, as they are allocated.
    pub fn cached_bytes(&self, layer: usize) -> usize {
        match &self.layers[layer].attention {
            AttentionKind::Grouped => self.cache_dtype.dense_bytes(2 * self.d_kv()),
            AttentionKind::Latent(latent) => self.cache_dtype.latent_bytes(&latent.cached_widths()),
        }
    }

    /// Bytes all layers cache a token.
    pub fn cached_bytes_total(&self) -> usize {
        (0..self.n_layers()).map(|layer| self.cached_bytes(layer)).sum()
    }

    /// Numbers all layers cache a token.
    pub fn cached_numbers_total(&self) -> usize {
        (0..self.n_layers()).map(|layer| self.cached_numbers(layer)).sum()
    }

    /// The donor's cache over this model's, in numbers a token: 1 for a donor, and honest where layers stay original.
    pub fn compression_ratio(&self) -> f64 {
        let donor: usize = (0..self.n_layers()).map(|layer| self.donor_numbers(layer)).sum();
        donor as f64 / self.cached_numbers_total() as f64
    }

    /// Numbers a token that the donor cached for a layer.
    pub fn donor_numbers(&self, layer: usize) -> usize {
        self.latent(layer).and_then(|latent| latent.replaces).unwrap_or(2 * self.d_kv())
    }

    /// The same graph with every layer's attention as the donor has it, and its cache in f32.
    pub fn donor(&self) -> Self {
        let mut donor = Self { cache_dtype: CacheDtype::F32, ..self.clone() };
        for layer in &mut donor.layers {
            layer.attention = AttentionKind::Grouped;
        }
        donor
    }
}
