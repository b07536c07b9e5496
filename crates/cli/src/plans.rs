//! From the command line to the plans that a conversion tries.

use calib::{Cascade, Deepseek, Goal, KeyLayout, Objective, Plan, Ranks, Width, Xkv};
use mla_core::{CacheDtype, DecoderConfig};

use crate::args::{self, CompareArgs, ConvertArgs, Method, MethodArgs, StatisticsArgs};
use crate::error::UserError;

/// Earlier layers that a cascade reads unless said otherwise.
pub const CASCADE_WINDOW: usize = 7;
/// Layers that share a basis unless said otherwise.
pub const GROUP_SIZE: usize = 4;
/// Dimensions that `decoupled_rope` keeps unless said otherwise, and numbers of a shared key at most.
const D_ROPE: usize = 64;

/// What latents may be kept as where rank and bits are chosen together.
pub const PLANNED: [CacheDtype; 4] = [CacheDtype::Bf16, CacheDtype::Int8, CacheDtype::Int4, CacheDtype::Int3];

/// What a command line asks a planner for.
///
/// # Errors
/// When it is to be reached by a cache in a type that it does not count.
pub fn goal(args: &ConvertArgs) -> Result<Option<Goal>, UserError> {
    let planned = args.target.map(|_| "--target").or(args.max_ppl_increase.map(|_| "--max-ppl-increase"));
    if let (Some(goal), Some(crate::args::CacheDtype::F32)) = (planned, args.cache_dtype) {
        // Bytes are counted against a donor's of 16 bits.
        let found = format!("f32 with {goal}");
        let expected = "f16, bf16, int8, int4 or int3".into();
        return Err(UserError::Flag { flag: "--cache-dtype", found, expected });
    }
    Ok(match (args.target, args.max_ppl_increase) {
        (Some(target), _) => Some(Goal::Target(target)),
        // On text that the donor foretells as well as it can, what perplexity rises by is what it diverges by.
        (None, Some(increase)) => Some(Goal::Divergence(increase.ln_1p())),
        (None, None) => None,
    })
}

/// The width a command line asks for; the model checks it later.
pub fn width(ratio: f64, d_latent: Option<usize>) -> Width {
    d_latent.map_or(Width::Ratio(ratio), Width::Fixed)
}

/// The plans that a command line asks for, the preferred one first.
///
/// # Errors
/// When an option belongs to another method, or two contradict each other.
pub fn plans(
    args: &MethodArgs,
    width: Width,
    cache: CacheDtype,
    calibrated: bool,
    config: &DecoderConfig,
) -> Result<Vec<Plan>, UserError> {
    check_flags(args)?;
    let objective = match args.objective {
        Some(args::Objective::Mse) => Objective::Mse,
        Some(args::Objective::Attention) => Objective::Attention,
        Some(args::Objective::Fisher) => Objective::Fisher,
        None if calibrated => Objective::Fisher,
        None => Objective::Mse,
    };
    let ranks: &[Ranks] = match (args.ranks, width) {
        (Some(args::Ranks::Global), Width::Fixed(_)) => {
            return Err(UserError::Flag {
                flag: "--ranks",
                found: "global".into(),
                expected: "uniform with --d-latent, which gives every layer one width".into(),
            });
        }
        (Some(args::Ranks::Uniform), _) | (_, Width::Fixed(_)) => &[Ranks::Uniform],
        (Some(args::Ranks::Global), _) => &[Ranks::Global],
        (Some(args::Ranks::Auto) | None, _) if calibrated => &[Ranks::Global, Ranks::Uniform],
        // Nothing to measure on, and without text no common unit.
        (Some(args::Ranks::Auto) | None, _) => &[Ranks::Uniform],
    };
    let methods = methods(args, calibrated, config, width);
    let of = |method: &calib::Method| {
        let method = *method;
        // Other engines know one rank for all layers.
        let ranks = if is_series(&method) { &[Ranks::Uniform][..] } else { ranks };
        ranks.iter().map(move |&ranks| Plan { method, objective, ranks, width, cache })
    };
    if args.ranks == Some(args::Ranks::Global) && methods.iter().any(is_series) {
        return Err(UserError::Flag {
            flag: "--ranks",
            found: "global".into(),
            expected: "uniform with --layout deepseek, which has one rank for all layers".into(),
        });
    }
    Ok(methods.iter().flat_map(of).collect())
}

/// Whether a method is in the layout of other engines.
pub fn is_series(method: &calib::Method) -> bool {
    matches!(method, calib::Method::Deepseek(Deepseek { layout: KeyLayout::Deepseek, .. }))
}

/// How statistics are to be gathered.
///
/// # Errors
/// When something is said of a Fisher pass and `fisher` is not among the objectives.
pub fn options(args: &StatisticsArgs, fisher: bool, seed: u64) -> Result<calib::Options, UserError> {
    for (flag, found) in [("--fisher-samples", args.fisher_samples), ("--fisher-draws", args.fisher_draws)] {
        if found.is_some() && !fisher {
            return Err(UserError::ObjectiveFlag { flag });
        }
    }
    let default = calib::Options::default();
    Ok(calib::Options {
        seed,
        fisher_windows: args.fisher_samples.unwrap_or(default.fisher_windows),
        fisher_draws: args.fisher_draws.unwrap_or(default.fisher_draws),
        sink: args.sink_weight.unwrap_or(default.sink),
    })
}

/// Bytes of scratch memory.
pub fn scratch_bytes(gib: f64) -> u64 {
    (gib * (1u64 << 30) as f64) as u64
}

/// Every combination of the methods, objectives and ranks to compare, at one width.
///
/// # Errors
/// As [`plans`].
pub fn combinations(
    args: &CompareArgs,
    width: Width,
    calibrated: bool,
    config: &DecoderConfig,
) -> Result<Vec<Plan>, UserError> {
    let dtypes = match args.cache_dtype.as_slice() {
        [] => vec![CacheDtype::F32],
        given => given.iter().map(|dtype| dtype.dtype()).collect(),
    };
    let mut all = Vec::new();
    let methods = compared(args, calibrated);
    for &method in methods {
        let only =
            |wanted: Method, values: &[usize]| if method == wanted { each(values) } else { vec![None] };
        for objective in each(&args.objective) {
            for ranks in each(&args.ranks) {
                for cascade in cascades(args, method) {
                    for cross_layer_group_size in only(Method::Xkv, &args.cross_layer_group_size) {
                        let d_ropes = match method {
                            Method::DecoupledRope | Method::Deepseek => each(&args.d_rope),
                            _ => vec![None],
                        };
                        let layouts =
                            if method == Method::Deepseek { each(&args.layout) } else { vec![None] };
                        for (d_rope, layout) in
                            d_ropes.into_iter().flat_map(|d| layouts.iter().map(move |&layout| (d, layout)))
                        {
                            let one = MethodArgs {
                                method,
                                objective,
                                ranks,
                                cascade_window: cascade.0,
                                cascade_group: None,
                                cascade_latents: cascade.1,
                                cascade_rounds: cascade.2,
                                cross_layer_group_size,
                                xkv_skip_early_layers: None,
                                keep_early_layers_original: false,
                                d_rope,
                                layout,
                                statistics: args.statistics.clone(),
                            };
                            for &dtype in &dtypes {
                                all.extend(plans(&one, width, dtype, calibrated, config)?);
                            }
                        }
                    }
                }
            }
        }
    }
    Ok(all)
}

/// The methods of a comparison.
fn compared(args: &CompareArgs, calibrated: bool) -> &[Method] {
    match (args.method.as_slice(), calibrated) {
        ([], true) => &[Method::Separate, Method::Joint, Method::Cascade],
        ([], false) => &[Method::Separate, Method::Joint],
        (given, _) => given,
    }
}

/// An option of a method that is not compared would do nothing.
///
/// # Errors
/// When there is such an option.
pub fn check_compared(args: &CompareArgs) -> Result<(), UserError> {
    let methods = compared(args, !args.calibration.no_calibration);
    let flags = [
        ("--cross-layer-group-size", Method::Xkv, args.cross_layer_group_size.is_empty()),
        ("--d-rope", or_decoupled(methods), args.d_rope.is_empty()),
        ("--layout", Method::Deepseek, args.layout.is_empty()),
        ("--cascade-window", Method::Cascade, args.cascade_window.is_empty()),
        ("--cascade-latents", Method::Cascade, args.cascade_latents.is_empty()),
        ("--cascade-rounds", Method::Cascade, args.cascade_rounds.is_empty()),
    ];
    for (flag, method, absent) in flags {
        if !absent && !methods.contains(&method) {
            let found = methods.iter().map(|&method| name(method)).collect::<Vec<_>>().join(",");
            return Err(UserError::MethodFlag { flag, belongs_to: name(method), found });
        }
    }
    Ok(())
}

/// The method that has `--d-rope`, of two.
fn or_decoupled(methods: &[Method]) -> Method {
    if methods.contains(&Method::Deepseek) { Method::Deepseek } else { Method::DecoupledRope }
}

/// Each value, or nothing said once.
fn each<T: Copy>(values: &[T]) -> Vec<Option<T>> {
    if values.is_empty() { vec![None] } else { values.iter().copied().map(Some).collect() }
}

/// Windows, latents and rounds of every cascade to compare.
fn cascades(
    args: &CompareArgs,
    method: Method,
) -> Vec<(Option<usize>, Option<args::Latents>, Option<usize>)> {
    if method != Method::Cascade {
        return vec![(None, None, None)];
    }
    let mut all = Vec::new();
    for window in each(&args.cascade_window) {
        for latents in each(&args.cascade_latents) {
            all.extend(each(&args.cascade_rounds).into_iter().map(|rounds| (window, latents, rounds)));
        }
    }
    all
}

/// Whether the cache of a cascade would be larger than that of other methods at the same ratio: where layers that see all read
/// the latents of layers with a window, which then keep every token.
pub fn cascade_keeps_more(config: &DecoderConfig, width: Width) -> bool {
    let window = CASCADE_WINDOW.min(config.n_layers().saturating_sub(1));
    let [cascade, joint] = [calib::Method::Cascade(Cascade::of_window(window)), calib::Method::Joint]
        .map(|method| calib::uniform_latents(config, method, width).map(|graph| calib::cache_ratio(&graph)));
    cascade.ok().zip(joint.ok()).is_some_and(|(cascade, joint)| cascade < 0.9 * joint)
}

/// Numbers of a shared key unless said otherwise: a third of what a ratio leaves a token, at most [`D_ROPE`] and what there is.
fn shared_key(config: &DecoderConfig, width: Width) -> usize {
    let turning = (0..config.n_layers()).filter_map(|layer| config.rope(layer));
    let most = turning.map(|rope| config.n_kv_heads * rope.d_rotary).min().unwrap_or(D_ROPE);
    let third = match width {
        Width::Ratio(ratio) => (2.0 * config.d_kv() as f64 / ratio / 3.0) as usize,
        Width::Fixed(d_latent) => d_latent,
    };
    (third.min(D_ROPE).min(most) / 2 * 2).max(2)
}

fn methods(args: &MethodArgs, calibrated: bool, config: &DecoderConfig, width: Width) -> Vec<calib::Method> {
    let n_layers = config.n_layers();
    let cascade = calib::Method::Cascade(Cascade {
        window: args.cascade_window.unwrap_or(CASCADE_WINDOW.min(n_layers.saturating_sub(1))),
        group: args.cascade_group,
        latents: match args.cascade_latents {
            Some(args::Latents::Apart) => calib::Latents::Apart,
            Some(args::Latents::Together) | None => calib::Latents::Together,
        },
        rounds: args.cascade_rounds.unwrap_or(Cascade::ROUNDS),
    });
    let xkv = calib::Method::Xkv(Xkv {
        group_size: args.cross_layer_group_size.unwrap_or(GROUP_SIZE.min(n_layers)),
        skip_early_layers: args.xkv_skip_early_layers.unwrap_or(0),
        keep_early_layers_original: args.keep_early_layers_original,
    });
    let decoupled = calib::Method::DecoupledRope { d_rope: args.d_rope.unwrap_or(D_ROPE) };
    let layout = match args.layout {
        Some(args::Layout::Deepseek) => KeyLayout::Deepseek,
        Some(args::Layout::Free) | None => KeyLayout::Free,
    };
    let deepseek = |d_rope: usize| calib::Method::Deepseek(Deepseek { d_rope, layout });
    match args.method {
        Method::Deepseek => vec![deepseek(args.d_rope.unwrap_or_else(|| shared_key(config, width)))],
        Method::Separate => vec![calib::Method::Separate],
        Method::Xkv => vec![xkv],
        Method::Joint => vec![calib::Method::Joint],
        Method::DecoupledRope => vec![decoupled],
        Method::Cascade => vec![cascade],
        // A method whose own options were given is wanted among the candidates. Otherwise xkv and decoupled_rope are left
        // out: at equal cache each is a restriction of separate, and cannot win.
        Method::Auto => {
            let cascade = (calibrated && n_layers > 1).then_some(cascade);
            let xkv = args.cross_layer_group_size.or(args.xkv_skip_early_layers).map(|_| xkv);
            let decoupled = args.d_rope.filter(|_| args.layout.is_none()).map(|_| decoupled);
            // Its metric is asked of another model than the others', which takes as long again.
            let deepseek =
                args.layout.map(|_| deepseek(args.d_rope.unwrap_or_else(|| shared_key(config, width))));
            let alone = [calib::Method::Separate, calib::Method::Joint];
            // Without text joint and separate cannot be compared, and K and V have no common unit.
            let alone = if calibrated { &alone[..] } else { &alone[..1] };
            let more = xkv.into_iter().chain(decoupled).chain(deepseek);
            cascade.into_iter().chain(alone.iter().copied()).chain(more).collect()
        }
    }
}

/// An option of one method does nothing with another, so it is refused there.
///
/// # Errors
/// When there is such an option.
pub fn check_flags(args: &MethodArgs) -> Result<(), UserError> {
    let flags = [
        ("--cross-layer-group-size", Method::Xkv, args.cross_layer_group_size.is_some()),
        ("--xkv-skip-early-layers", Method::Xkv, args.xkv_skip_early_layers.is_some()),
        ("--keep-early-layers-original", Method::Xkv, args.keep_early_layers_original),
        ("--d-rope", or_decoupled(&[args.method]), args.d_rope.is_some()),
        ("--layout", Method::Deepseek, args.layout.is_some()),
        ("--cascade-window", Method::Cascade, args.cascade_window.is_some()),
        ("--cascade-group", Method::Cascade, args.cascade_group.is_some()),
        ("--cascade-latents", Method::Cascade, args.cascade_latents.is_some()),
        ("--cascade-rounds", Method::Cascade, args.cascade_rounds.is_some()),
    ];
    for (flag, method, given) in flags {
        // Layers that keep their attention change the cache's size, which auto compares at equal bytes.
        let fits_auto = args.method == Method::Auto && flag != "--keep-early-layers-original";
        if given && args.method != method && !fits_auto {
            let found = name(args.method).to_owned();
            return Err(UserError::MethodFlag { flag, belongs_to: name(method), found });
        }
    }
    Ok(())
}

fn name(method: Method) -> &'static str {
    match method {
        Method::Auto => "auto",
        Method::Separate => "separate",
        Method::Xkv => "xkv",
        Method::Joint => "joint",
        Method::DecoupledRope => "decoupled_rope",
        Method::Cascade => "cascade",
        Method::Deepseek => "deepseek",
    }
}
