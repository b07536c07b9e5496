//! Reading rotary embeddings: `rope_scaling`, transformers 5's `rope_parameters`, and the fields beside them.
//!
//! As transformers 5 has it, `rope_scaling` goes before `rope_parameters`; the base is taken from whichever of the two says
//! it, else from the field beside them, else it is the family's.

use mla_core::positions::{RopeConfig, RopeScaling};

use crate::config_json::ConfigJson;
use crate::error::Error;

/// What a family's rotary embedding is where `config.json` does not say.
#[derive(Clone, Copy, Debug)]
pub(super) struct RopeDefaults<'a> {
    /// The base.
    pub(super) theta: f64,
    /// The field beside the objects in which the base may stand.
    pub(super) theta_field: &'a str,
    /// The field beside the objects in which the share of a head that is rotated may stand, and its default; `None` for a
    /// family that rotates whole heads only.
    pub(super) partial: Option<(&'a str, f64)>,
    /// The positions it was trained on, of a family whose class says so; they stand before those of the objects.
    pub(super) trained: Option<usize>,
    /// Whether YaRN's ramp is of whole pairs whatever the object says, as transformers has it where each kind of layer has
    /// an object of its own.
    pub(super) truncates: bool,
    /// Width of a head.
    pub(super) d_head: usize,
    /// The context that `config.json` states.
    pub(super) max_positions: usize,
}

impl RopeDefaults<'_> {
    /// The base and share that most families have.
    pub(super) fn of(d_head: usize, theta: f64, max_positions: usize) -> RopeDefaults<'static> {
        RopeDefaults {
            theta,
            theta_field: "rope_theta",
            partial: None,
            trained: None,
            truncates: false,
            d_head,
            max_positions,
        }
    }
}

/// The one rotary embedding of a model.
pub(super) fn rope(json: &ConfigJson, defaults: RopeDefaults<'_>) -> Result<RopeConfig, Error> {
    let scaling = json.object("rope_scaling")?.filter(|scaling| !scaling.fields().is_empty());
    let parameters = json.object("rope_parameters")?;
    let chosen = scaling.clone().or_else(|| parameters.clone());
    let said = [scaling, parameters].into_iter().flatten().find(|object| object.get("rope_theta").is_some());
    let beside = json.positive_or(defaults.theta_field, defaults.theta)?;
    let theta = match said {
        Some(object) => object.positive("rope_theta")?,
        None => beside,
    };
    one(json, chosen.as_ref(), theta, defaults)
}

/// The rotary embedding of one kind of layer, where `rope_parameters` has an object a kind; `scaling` goes before it. A flat
/// `rope_parameters` says nothing of either kind.
pub(super) fn rope_of_kind(
    json: &ConfigJson,
    kind: &str,
    scaling: Option<&ConfigJson>,
    defaults: RopeDefaults<'_>,
) -> Result<RopeConfig, Error> {
    let nested = match json.object("rope_parameters")? {
        Some(parameters) => parameters.object(kind)?,
        None => None,
    };
    let defaults = RopeDefaults { truncates: true, ..defaults };
    let beside = json.positive_or(defaults.theta_field, defaults.theta)?;
    let chosen = scaling.or(nested.as_ref());
    let said =
        [scaling, nested.as_ref()].into_iter().flatten().find(|object| object.get("rope_theta").is_some());
    let theta = match said {
        Some(object) => object.positive("rope_theta")?,
        None => beside,
    };
    one(json, chosen, theta, defaults)
}

/// One object's rotary embedding.
fn one(
    json: &ConfigJson,
    object: Option<&ConfigJson>,
    theta: f64,
    defaults: RopeDefaults<'_>,
) -> Result<RopeConfig, Error> {
    let RopeDefaults { partial, d_head, max_positions, .. } = defaults;
    let (field, usual) = partial.unwrap_or(("partial_rotary_factor", 1.0));
    let beside = json.positive_or(field, usual)?;
    let share = match object {
        Some(object) => object.positive_or("partial_rotary_factor", beside)?,
        None => beside,
    };
    if share > 1.0 || (partial.is_none() && share != 1.0) {
        let expected = if partial.is_some() { "at most 1" } else { "1: this family rotates whole heads" };
        return Err(json.bad(field, expected, &share.into()));
    }
    let d_rotary = (d_head as f64 * share) as usize;
    if d_rotary == 0 || !d_rotary.is_multiple_of(2) {
        let found = json.get("head_dim").cloned().unwrap_or_else(|| d_head.into());
        return Err(json.bad("head_dim", "an even number (rotary pairs)", &found));
    }
    let plain = RopeConfig::plain(theta, d_rotary);
    let Some(object) = object else { return Ok(plain) };
    let kind = object.text_or("rope_type", object.text_or("type", "default")?)?;
    let trained = || match json.size_or_none("original_max_position_embeddings")?.or(defaults.trained) {
        // Where it stands beside the object, as in Phi 3, that of the object does not count.
        Some(beside) => Ok::<usize, Error>(beside),
        None => Ok(object.size_or_none("original_max_position_embeddings")?.unwrap_or(max_positions)),
    };
    let scaling = match kind {
        "default" => RopeScaling::None,
        "linear" => RopeScaling::Linear { factor: factor(object)? },
        "dynamic" => RopeScaling::Dynamic { factor: factor(object)?, original_max: max_positions },
        "llama3" => RopeScaling::Llama3 {
            factor: factor(object)?,
            low_freq_factor: object.positive("low_freq_factor")?,
            high_freq_factor: object.positive("high_freq_factor")?,
            original_max: trained()?,
        },
        // Phi 3 calls LongRoPE so in its first releases.
        "longrope" | "su" => return long(object, plain, trained()?, max_positions),
        "yarn" if object.get("short_factor").is_some() => {
            return long(object, plain, trained()?, max_positions);
        }
        "yarn" => return yarn(object, plain, trained()?, defaults),
        other => {
            let known = "type default, linear, dynamic, llama3, yarn or longrope";
            return Err(json.bad("rope_scaling", known, &other.into()));
        }
    };
    Ok(RopeConfig { scaling, ..plain })
}

/// YaRN (Peng et al. 2023), with DeepSeek's `mscale`.
fn yarn(
    object: &ConfigJson,
    plain: RopeConfig,
    original_max: usize,
    defaults: RopeDefaults<'_>,
) -> Result<RopeConfig, Error> {
    let factor = match object.get("factor") {
        Some(_) => factor(object)?,
        None => (defaults.max_positions as f64 / original_max as f64).max(1.0),
    };
    let spread = |mscale: f64| if factor <= 1.0 { 1.0 } else { 0.1 * mscale * factor.ln() + 1.0 };
    let said = |field| object.get(field).map(|_| object.positive_or(field, 1.0)).transpose();
    let amplitude = match (said("attention_factor")?, said("mscale")?, said("mscale_all_dim")?) {
        (Some(amplitude), ..) => amplitude,
        (None, Some(mscale), Some(all)) => spread(mscale) / spread(all),
        (None, ..) => spread(1.0),
    };
    let scaling = RopeScaling::Yarn {
        factor,
        original_max,
        beta_fast: object.positive_or("beta_fast", 32.0)?,
        beta_slow: object.positive_or("beta_slow", 1.0)?,
        truncate: defaults.truncates || object.flag_or("truncate", true)?,
    };
    Ok(RopeConfig { amplitude, scaling, ..plain })
}

/// LongRoPE (Ding et al. 2024).
fn long(
    object: &ConfigJson,
    plain: RopeConfig,
    original_max: usize,
    max_positions: usize,
) -> Result<RopeConfig, Error> {
    let divisors = |field| {
        let divisors = object.numbers(field)?.ok_or_else(|| object.missing(field))?;
        match divisors.len() == plain.d_rotary / 2 && divisors.iter().all(|&x| x > 0.0) {
            true => Ok(divisors),
            false => {
                let expected = format!("{} positive numbers, one a rotary pair", plain.d_rotary / 2);
                let found = object.get(field).cloned().unwrap_or_default();
                Err(object.bad(field, expected, &found))
            }
        }
    };
    let stretch = object.positive_or("factor", max_positions as f64 / original_max as f64)?;
    let default = if stretch <= 1.0 { 1.0 } else { (1.0 + stretch.ln() / (original_max as f64).ln()).sqrt() };
    let amplitude = object.positive_or("attention_factor", default)?;
    let scaling =
        RopeScaling::Long { short: divisors("short_factor")?, long: divisors("long_factor")?, original_max };
    Ok(RopeConfig { amplitude, scaling, ..plain })
}

/// How far the context is stretched.
fn factor(scaling: &ConfigJson) -> Result<f64, Error> {
    let factor = scaling.positive("factor")?;
    match factor >= 1.0 {
        true => Ok(factor),
        false => Err(scaling.bad("factor", "at least 1", &factor.into())),
    }
}

/// The positions that a model is made for, given those that `config.json` states.
pub(super) fn context(rope: &RopeConfig, stated: usize) -> usize {
    let stretched = match rope.scaling {
        RopeScaling::Dynamic { factor, .. } => stated as f64 * factor,
        RopeScaling::Yarn { factor, original_max, .. } => original_max as f64 * factor,
        _ => 0.0,
    };
    stated.max(stretched as usize)
}
