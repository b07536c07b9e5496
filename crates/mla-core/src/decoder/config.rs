//! The closed choices in which decoder families differ.

use crate::attention::RopeConfig;
use crate::cache::CacheDtype;

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
    /// Inner width of the MLP (of one expert, where there are experts).
    pub d_ff: usize,
    /// Rows of the token embedding.
    pub vocab_size: usize,
    /// Longest sequence the positions are made for.
    pub max_positions: usize,
    /// Which norm stands before attention, before the MLP and before the head.
    pub norm: NormKind,
    /// Added to the variance inside every norm.
    pub norm_eps: f64,
    /// How positions enter.
    pub position: PositionKind,
    /// The MLP's form.
    pub mlp: MlpKind,
    /// Which projections carry a bias.
    pub biases: Biases,
    /// Where the output head comes from.
    pub head: HeadKind,
    /// What a cache keeps its numbers as.
    pub cache_dtype: CacheDtype,
    /// One entry a layer.
    pub layers: Vec<LayerConfig>,
}

/// The norm of a decoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormKind {
    /// LayerNorm with gain and bias (Ba et al. 2016).
    Layer,
    /// RMSNorm with gain (Zhang & Sennrich 2019).
    Rms,
}

/// How a decoder knows where a token stands.
#[derive(Clone, Debug, PartialEq)]
pub enum PositionKind {
    /// A learned vector a position, added to the token embedding.
    Learned,
    /// Rotary embedding of queries and keys (Su et al. 2021).
    Rope(RopeConfig),
}

/// The MLP of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MlpKind {
    /// `down(act(up(x)))`.
    Plain(Activation),
    /// `down(act(gate(x)) · up(x))` (Shazeer 2020).
    Gated(Activation),
    /// Gated experts, `top_k` of `n_experts` a token, weights renormalised over those (Mixtral, Jiang et al. 2024).
    Experts {
        /// Nonlinearity of each expert.
        activation: Activation,
        /// Experts a layer.
        n_experts: usize,
        /// Experts that see a token.
        top_k: usize,
    },
}

/// A pointwise nonlinearity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x · sigmoid(x)`.
    Silu,
    /// GELU with the error function.
    Gelu,
    /// GELU by its tanh approximation (`gelu_new`, `gelu_pytorch_tanh`).
    GeluTanh,
    /// `max(x, 0)`.
    Relu,
}

/// Which projections carry a bias.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Biases {
    /// `W_q`, `W_k` and `W_v`.
    pub qkv: bool,
    /// `W_o`.
    pub output: bool,
    /// Every matrix of a dense MLP.
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
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerConfig {
    /// A query sees itself and the `window − 1` positions before it; `None` sees all.
    pub window: Option<usize>,
    /// What the layer caches.
    pub attention: AttentionKind,
}

/// What a layer caches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttentionKind {
    /// Keys and values of every kv head.
    Grouped,
    /// Latents.
    Latent(LatentConfig),
}

/// The latents of one layer and what they are rebuilt with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LatentConfig {
    /// How many numbers a token, and for what.
    pub width: LatentWidth,
    /// The layer whose `W_up` this one uses: itself, or the first of its group where a group shares one (xKV).
    pub up_of: usize,
    /// Cross terms (cascade): K reads the layer's own value latent, V its own key latent, and both read the latents of
    /// layers `first..layer`, those that have any. `None` for a layer that reads nothing but its own latent.
    pub reads_from: Option<usize>,
    /// Whether the weights say in which basis the latent is best quantised.
    pub balanced: bool,
}

/// Latent numbers a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LatentWidth {
    /// One latent for keys, one for values.
    Split {
        /// Numbers a token for keys.
        d_latent_k: usize,
        /// Numbers a token for values.
        d_latent_v: usize,
    },
    /// One latent from which keys and values are both rebuilt.
    Joint {
        /// Numbers a token.
        d_latent: usize,
    },
}

impl LatentWidth {
    /// The widths of its parts: those of keys and of values, or one of both.
    pub fn parts(self) -> Vec<usize> {
        match self {
            LatentWidth::Split { d_latent_k, d_latent_v } => vec![d_latent_k, d_latent_v],
            LatentWidth::Joint { d_latent } => vec![d_latent],
        }
    }

    /// Numbers cached a token.
    pub fn total(self) -> usize {
        match self {
            LatentWidth::Split { d_latent_k, d_latent_v } => d_latent_k + d_latent_v,
            LatentWidth::Joint { d_latent } => d_latent,
        }
    }
}

impl LatentConfig {
    /// A layer that stands alone: no group, no cross terms.
    pub fn alone(layer: usize, width: LatentWidth) -> Self {
        Self { width, up_of: layer, reads_from: None, balanced: false }
    }
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

    /// Numbers the layer caches a token.
    pub fn cached_numbers(&self, layer: usize) -> usize {
        match self.layers[layer].attention {
            AttentionKind::Grouped => 2 * self.d_kv(),
            AttentionKind::Latent(latent) => latent.width.total(),
        }
    }

    /// The latents of a layer; `None` where it caches keys and values.
    pub fn latent(&self, layer: usize) -> Option<LatentConfig> {
        match self.layers[layer].attention {
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
        match self.layers[layer].attention {
            AttentionKind::Grouped => self.cache_dtype.dense_bytes(2 * self.d_kv()),
            AttentionKind::Latent(latent) => self.cache_dtype.latent_bytes(&latent.width.parts()),
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
        (2 * self.d_kv() * self.n_layers()) as f64 / self.cached_numbers_total() as f64
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
