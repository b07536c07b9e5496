//! What a conversion is asked for.

use std::ops::Range;

use mla_core::decoder::{AttentionKind, KeyForm, LatentConfig, LatentWidth, SharedKeyConfig};
use mla_core::positions::RopeScaling;
use mla_core::{CacheDtype, DecoderConfig};
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::metric::Objective;
use crate::ranks::Ranks;

/// How wide the latents shall be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Width {
    /// The donor's cache over the new one's: `d_latent = d_kv / ratio` numbers for K and as many for V, on average.
    Ratio(f64),
    /// This many latent numbers for K and as many for V in every layer; twice as many where they share a latent.
    Fixed(usize),
}

/// A factorisation method and its parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(tag = "name", rename_all = "snake_case")]
pub enum Method {
    /// Each layer's K and V on their own.
    Separate,
    /// Layers in groups that share `W_uk` and `W_uv` (xKV, Chang et al. 2025).
    Xkv(Xkv),
    /// One latent for K and V together, `[W_uk; W_uv]` orthonormal as a whole.
    Joint,
    /// Some dimensions of K and V as they are, the rest factorised.
    DecoupledRope {
        /// Dimensions of K, and as many of V, that are kept.
        d_rope: usize,
    },
    /// Layers that read the latents of those before them, and cache only what those do not tell.
    Cascade(Cascade),
    /// One rotary key that all heads share, and one latent for values and the keys that are left, which are not rotated.
    Deepseek(Deepseek),
}

/// Parameters of [`Method::Deepseek`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Deepseek {
    /// Numbers a token of the shared key, in the mean of all layers: an even number.
    pub d_rope: usize,
    /// How the shared key turns.
    pub layout: KeyLayout,
}

/// How a shared key turns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KeyLayout {
    /// By the donor's frequencies, those that are missed most, wherever that is.
    Free,
    /// As DeepSeek's: by one series of frequencies, the same in every layer.
    Deepseek,
}

/// Parameters of [`Method::Xkv`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Xkv {
    /// Adjacent layers that share a basis.
    pub group_size: usize,
    /// Layers at the start that belong to no group.
    pub skip_early_layers: usize,
    /// Those layers keep their original attention; otherwise each is factorised on its own.
    pub keep_early_layers_original: bool,
}

/// Parameters of [`Method::Cascade`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Cascade {
    /// Earlier layers whose latents a layer reads.
    pub window: usize,
    /// Layers of a pipeline stage: no layer reads across the start of its stage. `None` for one stage.
    pub group: Option<usize>,
    /// What a layer's own latent is fitted to.
    pub latents: Latents,
    /// Rounds in which latents are refined for all layers that read them.
    pub rounds: usize,
}

/// What a cascade layer's own latent is fitted to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Latents {
    /// One latent for K and V.
    Together,
    /// A latent for K and one for V; each is read for the other too.
    Apart,
}

impl Xkv {
    /// The layers that share, in order; a skipped layer is a group of its own, or in none if it keeps its attention.
    pub fn groups(self, n_layers: usize) -> Vec<Range<usize>> {
        let skipped = match self.keep_early_layers_original {
            true => 0,
            false => self.skip_early_layers,
        };
        let early = (0..skipped).map(|layer| layer..layer + 1);
        let shared = (self.skip_early_layers..n_layers)
            .step_by(self.group_size)
            .map(|first| first..(first + self.group_size).min(n_layers));
        early.chain(shared).collect()
    }
}

impl Cascade {
    /// Rounds of refinement unless said otherwise: the first bring most (docs/ablations.md).
    pub const ROUNDS: usize = 4;

    /// One stage, one latent a layer, refined.
    pub fn of_window(window: usize) -> Self {
        Self { window, group: None, latents: Latents::Together, rounds: Self::ROUNDS }
    }

    /// The first layer whose latents `layer` reads.
    pub fn first_read(&self, layer: usize) -> usize {
        let stage = self.group.map_or(0, |group| layer / group * group);
        layer.saturating_sub(self.window).max(stage)
    }
}

impl Deepseek {
    /// Whether a model's keys can be brought into this form.
    fn check(self, config: &DecoderConfig, objective: Objective) -> Result<(), Error> {
        let width = |expected: String| Err(Error::SharedKeyWidth { found: self.d_rope, expected });
        let turning: Vec<_> = (0..config.n_layers()).filter_map(|layer| config.rope(layer)).collect();
        let Some(least) = turning.iter().map(|rope| config.n_kv_heads * rope.d_rotary).min() else {
            return Err(Error::SharedKey {
                why: "the model has no rotary embedding; joint is this form for it",
            });
        };
        if objective != Objective::Fisher {
            return Err(Error::SharedKey { why: "it is chosen by the loss, and needs the objective fisher" });
        }
        if self.d_rope == 0 || self.d_rope % 2 == 1 || self.d_rope > least {
            return width(format!("an even number from 2 to {least}, the rotary dimensions of all kv heads"));
        }
        if self.layout == KeyLayout::Free {
            return Ok(());
        }
        let alike = turning.len() == config.n_layers() && turning.iter().all(|rope| *rope == turning[0]);
        if !alike {
            return Err(Error::SharedKey {
                why: "the layout deepseek has one rotary embedding in all layers; free has not",
            });
        }
        if turning[0].scaling != RopeScaling::None || turning[0].amplitude != 1.0 {
            return Err(Error::SharedKey {
                why: "the layout deepseek knows no scaled rotary embedding; free does",
            });
        }
        Ok(())
    }
}

impl Method {
    /// The name on the command line and in `config.json`.
    pub fn name(&self) -> &'static str {
        match self {
            Method::Separate => "separate",
            Method::Xkv(_) => "xkv",
            Method::Joint => "joint",
            Method::DecoupledRope { .. } => "decoupled_rope",
            Method::Cascade(_) => "cascade",
            Method::Deepseek(_) => "deepseek",
        }
    }

    /// Earlier layers whose latents a layer reads.
    pub fn window(&self) -> usize {
        match self {
            Method::Cascade(cascade) => cascade.window,
            _ => 0,
        }
    }

    /// The name with its parameters, those of cascade where they are not the default: `cascade w7`, `xkv g4`.
    pub fn title(&self) -> String {
        match *self {
            Method::Separate | Method::Joint => self.name().to_owned(),
            Method::Xkv(xkv) => {
                let skipped = match (xkv.skip_early_layers, xkv.keep_early_layers_original) {
                    (0, _) => String::new(),
                    (skipped, true) => format!(" original {skipped}"),
                    (skipped, false) => format!(" skip {skipped}"),
                };
                format!("xkv g{}{skipped}", xkv.group_size)
            }
            Method::DecoupledRope { d_rope } => format!("decoupled_rope d{d_rope}"),
            Method::Deepseek(Deepseek { d_rope, layout }) => {
                let layout = if layout == KeyLayout::Deepseek { " series" } else { "" };
                format!("deepseek d{d_rope}{layout}")
            }
            Method::Cascade(cascade) => {
                let group = cascade.group.map_or(String::new(), |group| format!(" stages of {group}"));
                let how = match (cascade.latents, cascade.rounds) {
                    (Latents::Apart, _) => " apart".to_owned(),
                    (Latents::Together, Cascade::ROUNDS) => String::new(),
                    (Latents::Together, rounds) => format!(" r{rounds}"),
                };
                format!("cascade w{}{group}{how}", cascade.window)
            }
        }
    }
}

/// One way to convert a model.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Plan {
    /// How.
    pub method: Method,
    /// What is minimised.
    pub objective: Objective,
    /// Who gets how much.
    pub ranks: Ranks,
    /// How much there is.
    pub width: Width,
    /// What the cache keeps the latents as; a plan is measured so.
    pub cache: CacheDtype,
}

impl Plan {
    /// A name for tables: `cascade w7 fisher global int4`.
    pub fn name(&self) -> String {
        let name = format!("{} {} {}", self.method.title(), self.objective, self.ranks.name());
        match self.cache {
            CacheDtype::F32 => name,
            dtype => format!("{name} {}", dtype.name()),
        }
    }

    /// Whether the model can be converted so.
    ///
    /// # Errors
    /// When a parameter is out of range, or the model caches latents already.
    pub fn check(&self, config: &DecoderConfig) -> Result<(), Error> {
        if let Some(layer) = (0..config.n_layers()).find(|&layer| config.latent(layer).is_some()) {
            return Err(Error::AlreadyLatent { layer });
        }
        let n_layers = config.n_layers();
        let layers = |what: &'static str, found: usize, least: usize, most: usize| match (least..=most)
            .contains(&found)
        {
            true => Ok(()),
            false => Err(Error::Layers { what, found, least, most }),
        };
        // Before the width, of which the latent has what the shared key leaves.
        if let Method::Deepseek(deepseek) = self.method {
            deepseek.check(config, self.objective)?;
        }
        let d_latent = self.d_latent(config)?;
        match self.method {
            Method::Separate | Method::Joint | Method::Deepseek(_) => {}
            Method::Xkv(xkv) => {
                layers("cross-layer group size", xkv.group_size, 1, n_layers)?;
                layers("number of early layers to skip", xkv.skip_early_layers, 0, n_layers - 1)?;
            }
            Method::DecoupledRope { d_rope } => {
                let paired = !config.ropes().is_empty();
                if d_rope == 0 || d_rope >= d_latent || (paired && d_rope % 2 == 1) {
                    return Err(Error::RopeWidth { found: d_rope, d_latent, paired });
                }
            }
            Method::Cascade(cascade) => {
                layers("cascade window", cascade.window, 0, n_layers - 1)?;
                if let Some(group) = cascade.group {
                    layers("cascade group", group, 1, n_layers)?;
                }
            }
        }
        Ok(())
    }

    /// Numbers a token of K, and of V, if all were alike; of both together for `joint`, and without the shared key for
    /// `deepseek`.
    ///
    /// # Errors
    /// When the width is out of range.
    pub fn d_latent(&self, config: &DecoderConfig) -> Result<usize, Error> {
        let d_kv = match self.method {
            Method::Joint | Method::Deepseek(_) => 2 * config.d_kv(),
            _ => config.d_kv(),
        };
        let numbers = self.numbers(config, d_kv)?;
        match (self.method, self.width) {
            // The latent has what the shared key leaves of a ratio's numbers.
            (Method::Deepseek(deepseek), Width::Ratio(_)) => {
                let left = numbers.checked_sub(deepseek.d_rope).filter(|&left| left > 0);
                left.ok_or(Error::SharedKeyWidth {
                    found: deepseek.d_rope,
                    expected: format!("below the {numbers} numbers a token that the ratio leaves"),
                })
            }
            _ => Ok(numbers),
        }
    }

    /// Numbers a token of a layer that had `d_kv`.
    fn numbers(&self, config: &DecoderConfig, d_kv: usize) -> Result<usize, Error> {
        match self.width {
            // Written so that NaN is refused too.
            Width::Ratio(found) if !(1.0..=config.d_kv() as f64).contains(&found) => {
                Err(Error::Ratio { found, d_kv: config.d_kv() })
            }
            // A ratio that was itself a quotient of whole numbers must not lose one to rounding.
            Width::Ratio(ratio) => Ok(((d_kv as f64 / ratio + 1e-9) as usize).max(1)),
            Width::Fixed(found) if !(1..=config.d_kv()).contains(&found) => {
                Err(Error::LatentWidth { found, d_kv: config.d_kv() })
            }
            Width::Fixed(found) => Ok(found * d_kv / config.d_kv()),
        }
    }

    /// Numbers a token that `layers` layers may cache together.
    ///
    /// # Errors
    /// When the width is out of range.
    pub fn budget(&self, config: &DecoderConfig, layers: usize) -> Result<usize, Error> {
        self.d_latent(config)?;
        Ok(match self.width {
            Width::Ratio(ratio) => ((2 * config.d_kv() * layers) as f64 / ratio + 1e-9) as usize,
            Width::Fixed(d_latent) => match self.method {
                Method::Deepseek(deepseek) => (deepseek.d_rope + 2 * d_latent) * layers,
                _ => 2 * d_latent * layers,
            },
        })
    }
}

/// The shared keys of some plans, each once: each has statistics of its own.
pub(crate) fn shared_keys(plans: &[Plan]) -> Vec<Deepseek> {
    let mut shared = Vec::new();
    for plan in plans {
        if let Method::Deepseek(deepseek) = plan.method
            && !shared.contains(&deepseek)
        {
            shared.push(deepseek);
        }
    }
    shared
}

/// The graph that a method makes with latents of one width everywhere: what a ratio means before anything is measured.
///
/// # Errors
/// When the width or a parameter of the method is out of range, or the model caches latents already.
pub fn uniform_latents(config: &DecoderConfig, method: Method, width: Width) -> Result<DecoderConfig, Error> {
    let plan =
        Plan { method, objective: Objective::Mse, ranks: Ranks::Uniform, width, cache: CacheDtype::F32 };
    plan.check(config)?;
    let d_latent = plan.d_latent(config)?;
    let apart = LatentWidth::Split { d_latent_k: d_latent, d_latent_v: d_latent };
    let groups = match method {
        Method::Xkv(xkv) => xkv.groups(config.n_layers()),
        _ => Vec::new(),
    };
    let latent = |layer: usize| match method {
        Method::Separate | Method::DecoupledRope { .. } => Some(LatentConfig::alone(layer, apart)),
        Method::Joint => Some(LatentConfig::alone(layer, LatentWidth::Joint { d_latent })),
        // The pairs are not known before a measurement; how many there are is.
        Method::Deepseek(deepseek) => Some(LatentConfig {
            keys: match config.layers[layer].rope {
                Some(rope) => KeyForm::Shared(SharedKeyConfig { rope, pairs: vec![0; deepseek.d_rope / 2] }),
                None => KeyForm::Rotated,
            },
            ..LatentConfig::alone(layer, LatentWidth::Joint { d_latent })
        }),
        Method::Xkv(_) => {
            let group = groups.iter().find(|group| group.contains(&layer))?;
            Some(LatentConfig { up_of: group.start, ..LatentConfig::alone(layer, apart) })
        }
        Method::Cascade(cascade) => {
            let width = match cascade.latents {
                Latents::Together => LatentWidth::Joint { d_latent: 2 * d_latent },
                Latents::Apart => apart,
            };
            Some(LatentConfig {
                reads_from: Some(cascade.first_read(layer)),
                ..LatentConfig::alone(layer, width)
            })
        }
    };
    let mut config = config.clone();
    for (layer, entry) in config.layers.iter_mut().enumerate() {
        entry.attention = latent(layer).map_or(AttentionKind::Grouped, AttentionKind::Latent);
    }
    Ok(config)
}
