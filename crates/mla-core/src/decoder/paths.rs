//! Every path of attention over cached latents against keys and values that are rebuilt at once.

use burn::module::Param;
use burn::nn::{Linear, RmsNorm};
use burn::tensor::{Device, Distribution, Tensor, TensorData};
use rand::SeedableRng;
use rand::rngs::ChaCha8Rng;

use super::basis::spread_tensor;
use super::config::{
    Activation, AttentionKind, Biases, BlockKind, DecoderConfig, HeadKind, LayerConfig, MlpConfig, MlpKind,
    NormKind, PositionKind, QkNorm, Scales,
};
use super::latents::{KeyForm, LatentConfig, LatentWidth, SharedKeyConfig};
use crate::attention::{
    CrossTerms, Cubes, Frame, JointProjections, Keys, LatentAttention, Path, Paths, Projections, Queries,
    ScoreConfig, Scores, SharedKey, SplitProjections, Walk,
};
use crate::cache::{Cache, CacheDtype, Memory};
use crate::norm::HeadNorm;
use crate::positions::{Padding, RopeConfig};

const D_MODEL: usize = 20;
const D_HEAD: usize = 6;
const N_HEADS: usize = 4;
const TOKENS: usize = 11;
/// Columns of the passes, which cut tiles anywhere; the second are too many for a context to be cut into spans.
const PASSES: [&[usize]; 2] = [&[5, 1, 4, 1], &[10, 1]];

/// Tensors and the CPU's kernel, in tiles of three tokens, and the kernel of other devices.
const WALKS: [Walk; 3] = [
    Walk { host: None, cubes: Cubes::Never, tensors: 3 },
    Walk { host: Some(3), cubes: Cubes::Never, tensors: 3 },
    Walk { host: None, cubes: Cubes::Always, tensors: 3 },
];

/// Numbers that no other test draws from: a device's own generator is shared by all that run at a time.
struct Draw {
    rng: ChaCha8Rng,
    device: Device,
}

impl Draw {
    fn normal<const D: usize>(&mut self, shape: [usize; D], spread: f64) -> Tensor<D> {
        let data = TensorData::random::<f32, _, _>(shape, Distribution::Normal(0.0, spread), &mut self.rng);
        Tensor::from_data(data, &self.device)
    }

    fn linear(&mut self, rows: usize, cols: usize, bias: bool) -> Linear {
        Linear {
            weight: Param::from_tensor(self.normal([rows, cols], 0.4)),
            bias: bias.then(|| Param::from_tensor(self.normal([cols], 0.4))),
        }
    }
}

/// What a layer is, beside its sizes.
#[derive(Clone, Copy, Debug)]
struct Case {
    width: LatentWidth,
    /// Whether the second of two layers reads the first.
    cross: bool,
    rope: Option<usize>,
    /// The pairs of the rotated key that the second layer's heads share, where it has one.
    shared: Option<&'static [usize]>,
    window: Option<usize>,
    qk_norm: Option<QkNorm>,
    scores: ScoreConfig,
    dtype: CacheDtype,
}

impl Case {
    fn plain(width: LatentWidth) -> Self {
        Self {
            width,
            cross: false,
            rope: None,
            shared: None,
            window: None,
            qk_norm: None,
            scores: ScoreConfig::plain(D_HEAD),
            dtype: CacheDtype::F32,
        }
    }

    /// One layer, of those that hold two: the second reads the first where there are cross terms.
    fn attention(&self, n_kv_heads: usize, draw: &mut Draw) -> LatentAttention {
        let d_kv = n_kv_heads * D_HEAD;
        let normed = |width: usize, draw: &mut Draw| {
            let gain = match self.qk_norm? {
                QkNorm::Head => D_HEAD,
                QkNorm::Whole => width,
            };
            let gamma = Param::from_tensor(draw.normal([gain], 0.4) + 1.0);
            Some(HeadNorm { norm: RmsNorm { gamma, epsilon: 1e-6 } })
        };
        let read_k = if self.qk_norm.is_some() { d_kv } else { D_MODEL };
        let (projections, columns) = match self.width {
            LatentWidth::Split { d_latent_k: k, d_latent_v: v } => {
                let split = SplitProjections {
                    down_k: draw.linear(read_k, k, false),
                    up_k: draw.linear(k, d_kv, true),
                    down_v: draw.linear(D_MODEL, v, false),
                    up_v: draw.linear(v, d_kv, true),
                };
                (Projections::Split(split), [v, k])
            }
            LatentWidth::Joint { d_latent } => {
                let read = if self.qk_norm.is_some() { d_kv + D_MODEL } else { D_MODEL };
                let down = draw.linear(read, d_latent, false);
                let joint = JointProjections { down, up: draw.linear(d_latent, 2 * d_kv, true) };
                (Projections::Joint(joint), [0, 0])
            }
        };
        let shared = self.shared.map(|pairs| {
            let d_rope = 2 * pairs.len();
            SharedKey {
                down: draw.linear(read_k, d_rope, self.qk_norm.is_none()),
                up: draw.linear(d_rope, d_kv, false).weight,
                spread: self.dtype.bits().map(|_| Param::from_tensor(spread_tensor(d_rope, &draw.device))),
                rope: 0,
                pairs: pairs.to_vec(),
            }
        });
        let read = self.width.total();
        let sinks = self.scores.sinks.then(|| Param::from_tensor(draw.normal([N_HEADS], 1.0)));
        LatentAttention {
            queries: Queries {
                proj: draw.linear(D_MODEL, N_HEADS * D_HEAD, true),
                norm: normed(N_HEADS * D_HEAD, draw),
                n_heads: N_HEADS,
            },
            keys: self
                .qk_norm
                .map(|_| Keys { proj: draw.linear(D_MODEL, d_kv, true), norm: normed(d_kv, draw) }),
            projections,
            cross: self.cross.then(|| CrossTerms {
                key: draw.linear(columns[0] + read, d_kv, false),
                value: draw.linear(columns[1] + read, d_kv, false),
                reads: vec![0],
            }),
            shared,
            scores: Scores { scale: self.scores.scale, softcap: self.scores.softcap, sinks },
            o_proj: draw.linear(N_HEADS * D_HEAD, D_MODEL, true),
            n_kv_heads,
        }
    }

    fn config(&self, n_kv_heads: usize) -> DecoderConfig {
        let mlp = MlpConfig { kind: MlpKind::Plain(Activation::Relu), d_ff: 1 };
        let layer = |layer| LayerConfig {
            window: self.window,
            qk_norm: self.qk_norm,
            scores: self.scores,
            attention: AttentionKind::Latent(LatentConfig {
                keys: match self.shared {
                    Some(pairs) if layer == 1 => {
                        KeyForm::Shared(SharedKeyConfig { rope: 0, pairs: pairs.to_vec() })
                    }
                    _ => KeyForm::Rotated,
                },
                ..LatentConfig::alone(layer, self.width)
            }),
            ..LayerConfig::plain(D_HEAD, self.rope.map(|_| 0), mlp)
        };
        DecoderConfig {
            d_model: D_MODEL,
            n_heads: N_HEADS,
            n_kv_heads,
            d_head: D_HEAD,
            vocab_size: 1,
            max_positions: TOKENS,
            norm: NormKind::Rms,
            norm_eps: 1e-5,
            block: BlockKind::PreNorm,
            position: match self.rope {
                Some(d_rotary) => PositionKind::Rope(vec![RopeConfig::plain(100.0, d_rotary)]),
                None => PositionKind::Learned,
            },
            biases: Biases { qkv: true, output: true, mlp: false },
            scales: Scales::default(),
            head: HeadKind::Tied,
            cache_dtype: self.dtype,
            layers: vec![layer(0), layer(1)],
        }
    }

    /// The largest difference between all keys and values rebuilt at once and every path through tiles of three.
    fn gap(&self, left: &[usize]) -> f32 {
        let device = Device::default();
        let mut draw = Draw { rng: ChaCha8Rng::seed_from_u64(5), device: device.clone() };
        let mut worst = 0f32;
        for n_kv_heads in [1, 2, 4] {
            let layer = self.attention(n_kv_heads, &mut draw);
            let config = self.config(n_kv_heads);
            let padding = Padding::left(left.to_vec());
            let batch = left.len();
            let (h, earlier) = (
                draw.normal([batch, TOKENS, D_MODEL], 1.0),
                draw.normal([batch, TOKENS, self.width.total()], 1.0),
            );
            let tables: Vec<_> = config.ropes().iter().map(|rope| rope.table(TOKENS, &device)).collect();
            let frame = |past, t_q| Frame::new(config.reach(), &tables, &padding, past, t_q, &device);
            let whole = frame(0, TOKENS);
            // What a pass without a cache sees is what a cache would have kept.
            let mut pass = Memory::of_pass(&config);
            let kept = pass.append(0, 0, earlier.clone());
            let reads: Vec<_> = layer.cross.iter().map(|_| kept.clone()).collect();
            let known = layer.rebuild(pass.append(1, 0, layer.compress(h.clone(), &whole)), &reads);
            let oracle = layer.attend(h.clone(), known, &whole, 1);
            for (keys, values) in [Path::Rebuilt, Path::Absorbed]
                .into_iter()
                .flat_map(|keys| [Path::Rebuilt, Path::Absorbed].map(|values| (keys, values)))
                .filter(|&(keys, _)| {
                    let rotated = self.rope.is_some() && self.shared.is_none();
                    keys == Path::Rebuilt || !(rotated || layer.key_bias_counts())
                })
            {
                for (walk, passes) in WALKS.into_iter().flat_map(|walk| PASSES.map(|passes| (walk, passes))) {
                    let mut cache = Cache::new(&config, padding.clone(), TOKENS, &device);
                    let mut memory = Memory::Cache(&mut cache);
                    let mut past = 0;
                    for &t_q in passes {
                        let new = |x: &Tensor<3>| x.clone().narrow(1, past, t_q);
                        memory.store(0, past, new(&earlier));
                        let frame = frame(past, t_q);
                        memory.store(1, past, layer.compress(new(&h), &frame));
                        let paths = Paths { keys, values };
                        let out = layer.attend_along(paths, walk, new(&h), &frame, 1, &memory);
                        let difference = (out - new(&oracle)).abs();
                        for (row, &left) in left.iter().enumerate() {
                            let seen = left.max(past);
                            if seen < past + t_q {
                                let real = difference.clone().narrow(0, row, 1);
                                let real = real.narrow(1, seen - past, past + t_q - seen);
                                worst = worst.max(real.max().into_scalar());
                            }
                        }
                        past += t_q;
                    }
                    assert_eq!(past, TOKENS);
                }
            }
        }
        worst
    }

    fn holds(&self, left: &[usize]) {
        let gap = self.gap(left);
        assert!(gap < 2e-5, "{self:?}, {left:?}: {gap}");
    }
}

const WIDTHS: [LatentWidth; 2] =
    [LatentWidth::Split { d_latent_k: 5, d_latent_v: 3 }, LatentWidth::Joint { d_latent: 4 }];
/// Cross terms, and the dimensions that are rotated.
const SHAPES: [(bool, Option<usize>); 4] = [(false, None), (false, Some(6)), (true, None), (true, Some(6))];

#[test]
fn every_path_equals_keys_and_values_rebuilt_at_once() {
    for width in WIDTHS {
        for (cross, rope) in SHAPES {
            for (window, left) in
                [(None, vec![0]), (None, vec![0, 4, 7]), (Some(4), vec![0]), (Some(4), vec![6, 0])]
            {
                Case { cross, rope, window, ..Case::plain(width) }.holds(&left);
            }
        }
    }
}

#[test]
fn every_path_norms_rotates_bounds_and_sinks_alike() {
    let plain = ScoreConfig::plain(D_HEAD);
    let scores = [
        ScoreConfig { scale: 0.7, ..plain },
        ScoreConfig { softcap: Some(1.5), ..plain },
        ScoreConfig { sinks: true, ..plain },
        ScoreConfig { scale: 0.7, softcap: Some(2.0), sinks: true },
    ];
    for width in WIDTHS {
        for (cross, rope) in [(false, None), (true, Some(2)), (false, Some(4))] {
            for scores in scores {
                Case { cross, rope, scores, ..Case::plain(width) }.holds(&[0, 4]);
            }
            for qk_norm in [Some(QkNorm::Head), Some(QkNorm::Whole)] {
                Case { cross, rope, qk_norm, window: Some(5), ..Case::plain(width) }.holds(&[6, 0]);
            }
        }
    }
}

/// Pairs of the shared key, and the dimensions of a head that the donor rotates.
const SHARED: [(&[usize], usize); 2] = [(&[0, 1, 2], 6), (&[0, 0, 1, 0], 4)];

#[test]
fn every_path_reads_the_key_that_all_heads_share() {
    let bounded = ScoreConfig { scale: 0.7, softcap: Some(2.0), sinks: true };
    for (pairs, d_rotary) in SHARED {
        let case = Case { shared: Some(pairs), rope: Some(d_rotary), ..Case::plain(WIDTHS[1]) };
        case.holds(&[0, 4, 7]);
        Case { window: Some(4), qk_norm: Some(QkNorm::Head), ..case }.holds(&[6, 0]);
        Case { scores: bounded, ..case }.holds(&[0, 4]);
    }
    let (pairs, d_rotary) = SHARED[0];
    let case = Case { shared: Some(pairs), rope: Some(d_rotary), ..Case::plain(WIDTHS[1]) };
    let device = Device::default();
    for dtype in CacheDtype::ALL.into_iter().filter(|dtype| dtype.runs_on(&device, false)) {
        Case { dtype, window: Some(4), ..case }.holds(&[6, 0]);
    }
}

#[test]
fn every_path_reads_what_is_kept_in_fewer_bits() {
    let device = Device::default();
    let there = || CacheDtype::ALL.into_iter().filter(|dtype| dtype.runs_on(&device, false));
    for (width, dtype) in WIDTHS.into_iter().flat_map(|width| there().map(move |dtype| (width, dtype))) {
        for (cross, rope) in [(false, None), (true, Some(6))] {
            Case { cross, rope, window: Some(4), dtype, ..Case::plain(width) }.holds(&[6, 0]);
        }
    }
}

#[test]
fn a_cache_takes_the_bytes_that_its_configuration_counts() {
    let device = Device::default();
    for dtype in CacheDtype::ALL {
        let width = LatentWidth::Split { d_latent_k: 5, d_latent_v: 33 };
        let mut config = Case { rope: Some(6), dtype, ..Case::plain(width) }.config(2);
        config.layers[0].attention = AttentionKind::Grouped;
        let cache = Cache::new(&config, Padding::none(3), 7, &device);
        assert_eq!(cache.bytes(), 3 * 7 * config.cached_bytes_total(), "{dtype:?}");
    }
}
