//! Every path of attention over cached latents against keys and values that are rebuilt at once.

use burn::module::Param;
use burn::nn::Linear;
use burn::tensor::{Device, Distribution, Tensor, TensorData};
use rand::SeedableRng;
use rand::rngs::ChaCha8Rng;

use super::config::{
    Activation, AttentionKind, Biases, DecoderConfig, HeadKind, LatentConfig, LatentWidth, LayerConfig,
    MlpKind, NormKind, PositionKind,
};
use crate::attention::{
    CrossTerms, Cubes, Frame, JointProjections, LatentAttention, Padding, Path, Paths, Projections,
    RopeConfig, RopeScaling, SplitProjections, Walk,
};
use crate::cache::{Cache, CacheDtype, Memory};

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

/// One layer, of those that hold two: the second reads the first where there are cross terms.
fn attention(width: LatentWidth, cross: bool, n_kv_heads: usize, draw: &mut Draw) -> LatentAttention {
    let d_kv = n_kv_heads * D_HEAD;
    let (projections, columns) = match width {
        LatentWidth::Split { d_latent_k: k, d_latent_v: v } => {
            let split = SplitProjections {
                down_k: draw.linear(D_MODEL, k, false),
                up_k: draw.linear(k, d_kv, true),
                down_v: draw.linear(D_MODEL, v, false),
                up_v: draw.linear(v, d_kv, true),
            };
            (Projections::Split(split), [v, k])
        }
        LatentWidth::Joint { d_latent } => {
            let down = draw.linear(D_MODEL, d_latent, false);
            let joint = JointProjections { down, up: draw.linear(d_latent, 2 * d_kv, true) };
            (Projections::Joint(joint), [0, 0])
        }
    };
    let read = width.total();
    LatentAttention {
        q_proj: draw.linear(D_MODEL, N_HEADS * D_HEAD, true),
        projections,
        cross: cross.then(|| CrossTerms {
            key: draw.linear(columns[0] + read, d_kv, false),
            value: draw.linear(columns[1] + read, d_kv, false),
            reads: vec![0],
        }),
        o_proj: draw.linear(N_HEADS * D_HEAD, D_MODEL, true),
        n_heads: N_HEADS,
        n_kv_heads,
    }
}

fn config(
    width: LatentWidth,
    rope: bool,
    window: Option<usize>,
    n_kv_heads: usize,
    cache_dtype: CacheDtype,
) -> DecoderConfig {
    let latent = |layer| AttentionKind::Latent(LatentConfig::alone(layer, width));
    let layer = |layer| LayerConfig { window, attention: latent(layer) };
    DecoderConfig {
        d_model: D_MODEL,
        n_heads: N_HEADS,
        n_kv_heads,
        d_head: D_HEAD,
        d_ff: 1,
        vocab_size: 1,
        max_positions: TOKENS,
        norm: NormKind::Rms,
        norm_eps: 1e-5,
        position: match rope {
            true => PositionKind::Rope(RopeConfig { theta: 100.0, scaling: RopeScaling::None }),
            false => PositionKind::Learned,
        },
        mlp: MlpKind::Plain(Activation::Relu),
        biases: Biases { qkv: true, output: true, mlp: false },
        head: HeadKind::Tied,
        cache_dtype,
        layers: vec![layer(0), layer(1)],
    }
}

/// The largest difference between all keys and values rebuilt at once and every path through tiles of three.
fn gap(
    width: LatentWidth,
    cross: bool,
    rope: bool,
    window: Option<usize>,
    left: Vec<usize>,
    dtype: CacheDtype,
) -> f32 {
    let device = Device::default();
    let mut draw = Draw { rng: ChaCha8Rng::seed_from_u64(5), device: device.clone() };
    let mut worst = 0f32;
    for n_kv_heads in [1, 2, 4] {
        let layer = attention(width, cross, n_kv_heads, &mut draw);
        let config = config(width, rope, window, n_kv_heads, dtype);
        let padding = Padding::left(left.clone());
        let batch = left.len();
        let (h, earlier) =
            (draw.normal([batch, TOKENS, D_MODEL], 1.0), draw.normal([batch, TOKENS, width.total()], 1.0));
        let windows = vec![window; 2];
        let table = rope.then(|| match &config.position {
            PositionKind::Rope(rope) => rope.table(D_HEAD, TOKENS, &device),
            PositionKind::Learned => unreachable!("this one rotates"),
        });
        let frame = |past, t_q| Frame::new(windows.clone(), table.as_ref(), &padding, past, t_q, &device);
        let whole = frame(0, TOKENS);
        // What a pass without a cache sees is what a cache would have kept.
        let mut pass = Memory::of_pass(&config);
        let kept = pass.append(0, 0, earlier.clone());
        let reads: Vec<_> = layer.cross.iter().map(|_| kept.clone()).collect();
        let (k, v) = layer.rebuild(pass.append(1, 0, layer.projections.down(h.clone())), &reads);
        let oracle = layer.attend(h.clone(), k, v, &whole, 1);
        for (keys, values) in [Path::Rebuilt, Path::Absorbed]
            .into_iter()
            .flat_map(|keys| [Path::Rebuilt, Path::Absorbed].map(|values| (keys, values)))
            .filter(|&(keys, _)| !(rope && keys == Path::Absorbed))
        {
            for (walk, passes) in WALKS.into_iter().flat_map(|walk| PASSES.map(|passes| (walk, passes))) {
                let mut cache = Cache::new(&config, padding.clone(), TOKENS, &device);
                let mut memory = Memory::Cache(&mut cache);
                let mut past = 0;
                for &t_q in passes {
                    let new = |x: &Tensor<3>| x.clone().narrow(1, past, t_q);
                    memory.store(0, past, new(&earlier));
                    memory.store(1, past, layer.projections.down(new(&h)));
                    let paths = Paths { keys, values };
                    let out = layer.attend_along(paths, walk, new(&h), &frame(past, t_q), 1, &memory);
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

#[test]
fn every_path_equals_keys_and_values_rebuilt_at_once() {
    let widths = [LatentWidth::Split { d_latent_k: 5, d_latent_v: 3 }, LatentWidth::Joint { d_latent: 4 }];
    for width in widths {
        for (cross, rope) in [(false, false), (false, true), (true, false), (true, true)] {
            for (window, left) in
                [(None, vec![0]), (None, vec![0, 4, 7]), (Some(4), vec![0]), (Some(4), vec![6, 0])]
            {
                let gap = gap(width, cross, rope, window, left.clone(), CacheDtype::F32);
                assert!(gap < 2e-5, "{width:?}, cross {cross}, rope {rope}, {window:?}, {left:?}: {gap}");
            }
        }
    }
}

#[test]
fn every_path_reads_what_is_kept_in_fewer_bits() {
    let widths = [LatentWidth::Split { d_latent_k: 5, d_latent_v: 3 }, LatentWidth::Joint { d_latent: 4 }];
    let device = Device::default();
    let there = || CacheDtype::ALL.into_iter().filter(|dtype| dtype.runs_on(&device, false));
    for (width, dtype) in widths.into_iter().flat_map(|width| there().map(move |dtype| (width, dtype))) {
        for (cross, rope) in [(false, false), (true, true)] {
            let gap = gap(width, cross, rope, Some(4), vec![6, 0], dtype);
            assert!(gap < 2e-5, "{width:?}, cross {cross}, rope {rope}, {dtype:?}: {gap}");
        }
    }
}

#[test]
fn a_cache_takes_the_bytes_that_its_configuration_counts() {
    let device = Device::default();
    for dtype in CacheDtype::ALL {
        let width = LatentWidth::Split { d_latent_k: 5, d_latent_v: 33 };
        let mut config = config(width, true, None, 2, dtype);
        config.layers[0].attention = AttentionKind::Grouped;
        let cache = Cache::new(&config, Padding::none(3), 7, &device);
        assert_eq!(cache.bytes(), 3 * 7 * config.cached_bytes_total(), "{dtype:?}");
    }
}
