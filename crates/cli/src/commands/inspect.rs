//! `shrink inspect`.

use std::path::Path;

use calib::{Cascade, LayerReport, Method, SpectrumReport, Width, Xkv, uniform_latents};
use handlers::{
    MlaSection, Registry, TensorSpec, declared_quantisation, left_over, quantisation, read_config,
};
use mla_core::decoder::{LatentConfig, LatentWidth};
use mla_core::positions::{RopeConfig, RopeScaling};
use mla_core::{CacheDtype, DecoderConfig, LayerSlot, Slot};
use serde_json::{Value, json};
use train::eval::{TokenBytes, cache_sizes};
use train::trainable;

use crate::args::InspectArgs;
use crate::plans::{CASCADE_WINDOW, GROUP_SIZE};
use crate::record::{Record, token_bytes};
use crate::report::{bytes, table};
use crate::session::Session;

/// Bytes of a cached number in the tables: bf16 or f16.
const ELEMENT_BYTES: usize = 2;

/// Describes a model from its configuration; of weights that are there the headers are read, to tell quantised ones.
pub fn run(session: &Session, args: &InspectArgs) -> anyhow::Result<()> {
    let path = session.find_config(&args.model)?;
    let (object, text) = report(&session.registry, &path, &args.compression_ratio)?;
    let (json_config, ..) = read_config(&path, &session.registry)?;
    if let (Value::Null, Some(scheme)) = (&object["quantised"], declared_quantisation(&json_config)) {
        session.ui.note(&format!("note: {}", left_over(&scheme)));
    }
    session.print(&object, &text)
}

/// What is said of a configuration: for `--json`, and for people.
pub(super) fn report(registry: &Registry, path: &Path, ratios: &[f64]) -> anyhow::Result<(Value, String)> {
    let (json_config, config, section) = read_config(path, registry)?;
    let family = json_config.text_or("model_type", "")?.to_owned();
    let donor = registry.handler(&json_config)?.tensors(&config.donor());
    let specs = section.as_ref().map_or(donor.clone(), |section| section.tensors(&donor, &config));
    let parameters = parameters(&specs);
    let mut object = describe(&family, &config, parameters);
    let mut text = sentences(&family, &config, parameters);
    let quantised = quantisation(path, &json_config, &specs);
    object["quantised"] = json!(quantised);
    match section {
        Some(section) => {
            let trainable = trainable(&config);
            object["trainable"] = json!(trainable);
            object["mla"] = json!(section);
            let layers = recorded_layers(path)?;
            text += &converted(&config, &section, layers.as_deref());
            text += &format!(
                "\nshrink train moves {} of the {} numbers\n",
                share(trainable, parameters),
                count(parameters)
            );
            object["layers"] = json!(layers);
        }
        None if quantised.is_some() => {
            text += &format!(
                "the weights are quantised ({}): shrink converts plain floats, so take the model that it was made from\n",
                quantised.as_deref().unwrap_or_default()
            );
            object["methods"] = json!([]);
            object["choices"] = json!([]);
            object["beyond_d_kv"] = json!([]);
        }
        None => {
            let d_kv = config.d_kv();
            let (beyond, asked): (Vec<f64>, Vec<f64>) =
                ratios.iter().partition(|&&ratio| ratio > d_kv as f64);
            let choices = choices(&config, &asked, parameters)?;
            let methods = methods(&config);
            text += &format!(
                "methods that apply: {}\n\n{}",
                methods.join(", "),
                choices_table(&choices, &config)
            );
            if !beyond.is_empty() {
                let ratios = beyond.iter().map(|ratio| format!("{ratio}x")).collect::<Vec<_>>().join(", ");
                text += &format!("left out, beyond d_kv = {d_kv}: {ratios}\n");
            }
            object["methods"] = json!(methods);
            object["choices"] = json!(choices);
            object["beyond_d_kv"] = json!(beyond);
        }
    }
    Ok((object, text))
}

/// The methods that a model can be converted by; `decoupled_rope` also wants a ratio that leaves room for what it keeps.
fn methods(config: &DecoderConfig) -> Vec<&'static str> {
    let across = if config.n_layers() > 1 { &["cascade", "xkv"][..] } else { &[] };
    let rotary = if config.ropes().is_empty() { &[][..] } else { &["deepseek"] };
    ["separate", "joint", "decoupled_rope"].iter().chain(rotary).chain(across).copied().collect()
}

/// Numbers in the table's tensors; a fused one, which several specs share, counts once. A basis for quantising is none of
/// the model's: where it is used it becomes part of the matrices beside it.
fn parameters(specs: &[TensorSpec]) -> u64 {
    use LayerSlot::{BalanceJoint, BalanceKey, BalanceValue};
    let own = |slot| !matches!(slot, Slot::Layer(_, BalanceKey | BalanceValue | BalanceJoint));
    let mut seen = std::collections::HashSet::new();
    let whole = specs.iter().filter(|spec| own(spec.slot) && seen.insert(spec.key.as_str()));
    whole.map(|spec| spec.shape.iter().fold(1, |product: u64, &n| product.saturating_mul(n as u64))).sum()
}

fn describe(family: &str, config: &DecoderConfig, parameters: u64) -> Value {
    json!({
        "family": family,
        "parameters": parameters,
        "attention": config.sharing().to_string(),
        "n_layers": config.n_layers(),
        "d_model": config.d_model,
        "n_heads": config.n_heads,
        "n_kv_heads": config.n_kv_heads,
        "d_head": config.d_head,
        "d_kv": config.d_kv(),
        "vocab_size": config.vocab_size,
        "max_positions": config.max_positions,
        "sliding_windows": config.layers.iter().map(|l| l.window).collect::<Vec<_>>(),
        "cache_dtype": config.cache_dtype.name(),
        "cache_bytes_a_token": token_bytes(config).0.model,
        "compression_ratio": config.compression_ratio(),
    })
}

fn sentences(family: &str, config: &DecoderConfig, parameters: u64) -> String {
    let windowed = config.layers.iter().filter(|l| l.window.is_some()).count();
    let window = match (windowed, config.layers.iter().find_map(|l| l.window)) {
        (n, Some(window)) => format!(", sliding window {window} on {n} layers"),
        _ => String::new(),
    };
    format!(
        "{family}: {sharing}, {layers} layers, d_model {d_model}, {parameters} parameters\n\
         {heads} query heads, {kv} kv heads of {d_head}: d_kv {d_kv}\n\
         {positions}, context {context}{window}\n\
         cache a token, {dtype}: {cache}\n",
        parameters = count(parameters),
        sharing = config.sharing(),
        layers = config.n_layers(),
        d_model = config.d_model,
        heads = config.n_heads,
        kv = config.n_kv_heads,
        d_head = config.d_head,
        d_kv = config.d_kv(),
        positions = positions(config),
        context = config.max_positions,
        dtype = if config.cache_dtype == CacheDtype::F32 { "16 bit" } else { config.cache_dtype.name() },
        cache = bytes(token_bytes(config).0.model as u64),
    )
}

/// How layers know where a token stands: `RoPE, theta 10000`, or each kind with its layers.
fn positions(config: &DecoderConfig) -> String {
    let layers = |rope| config.layers.iter().filter(|layer| layer.rope == rope).count();
    let one = |(place, rope): (usize, &RopeConfig)| {
        let kind = match &rope.scaling {
            RopeScaling::None => "",
            RopeScaling::Linear { .. } => ", linear",
            RopeScaling::Dynamic { .. } => ", dynamic",
            RopeScaling::Llama3 { .. } => ", llama3",
            RopeScaling::Yarn { .. } => ", yarn",
            RopeScaling::Long { .. } => ", longrope",
        };
        let part = match rope.d_rotary == config.d_head {
            true => String::new(),
            false => format!(", {} of {} dimensions", rope.d_rotary, config.d_head),
        };
        (format!("theta {}{kind}{part}", rope.theta), layers(Some(place)))
    };
    let mut kinds: Vec<_> = config.ropes().iter().enumerate().map(one).filter(|(_, n)| *n > 0).collect();
    match (kinds.len(), layers(None)) {
        (0, _) => "learned positions".to_owned(),
        (1, 0) => format!("RoPE, {}", kinds.remove(0).0),
        (_, without) => {
            let mut parts: Vec<_> =
                kinds.into_iter().map(|(kind, n)| format!("{kind} in {n} layers")).collect();
            parts.extend((without > 0).then(|| format!("none in {without} layers")));
            format!("RoPE: {}", parts.join("; "))
        }
    }
}

/// A number in the largest unit that keeps a digit before the point: `999`, `134.52 M`, `7.62 B`.
fn count(n: u64) -> String {
    let units = [(1e9, "B"), (1e6, "M"), (1e3, "K")];
    match units.into_iter().find(|&(unit, _)| n as f64 >= unit) {
        Some((unit, name)) => format!("{:.2} {name}", n as f64 / unit),
        None => n.to_string(),
    }
}

/// `536.87 M (8.0%)`.
fn share(part: usize, whole: u64) -> String {
    format!("{} ({:.1}%)", count(part as u64), 100.0 * part as f64 / whole as f64)
}

/// The methods whose trainable numbers are shown: those whose counts differ most, with their default parameters.
fn counted(config: &DecoderConfig) -> [Method; 3] {
    let n_layers = config.n_layers();
    let xkv =
        Xkv { group_size: GROUP_SIZE.min(n_layers), skip_early_layers: 0, keep_early_layers_original: false };
    let window = CASCADE_WINDOW.min(n_layers.saturating_sub(1));
    [Method::Separate, Method::Xkv(xkv), Method::Cascade(Cascade::of_window(window))]
}

/// What a ratio would give.
#[derive(serde::Serialize)]
struct Choice {
    /// The ratio that the user named.
    asked: f64,
    /// The ratio that whole latent numbers give.
    compression_ratio: f64,
    d_latent: usize,
    cache_bytes_a_token: usize,
    cache_bytes_4096: u64,
    /// Numbers that training would move, by method.
    trainable: serde_json::Map<String, Value>,
    /// The same as a share of the donor's.
    #[serde(skip)]
    shares: Vec<String>,
}

/// A ratio below 1, or that is no number, is an error.
fn choices(config: &DecoderConfig, ratios: &[f64], parameters: u64) -> anyhow::Result<Vec<Choice>> {
    let mut choices = Vec::new();
    for &ratio in ratios {
        let converted = uniform_latents(config, Method::Separate, Width::Ratio(ratio))?;
        let mut trains = Vec::new();
        for method in counted(config) {
            trains.push((method, trainable(&uniform_latents(config, method, Width::Ratio(ratio))?)));
        }
        choices.push(Choice {
            asked: ratio,
            compression_ratio: converted.compression_ratio(),
            d_latent: converted.cached_numbers(0) / 2,
            cache_bytes_a_token: converted.cached_numbers_total() * ELEMENT_BYTES,
            cache_bytes_4096: cache_sizes(&TokenBytes::plain(&converted, ELEMENT_BYTES), &[4096], 1)[0]
                .model_bytes,
            trainable: trains.iter().map(|(method, n)| (method.name().to_owned(), json!(n))).collect(),
            shares: trains.iter().map(|(_, n)| share(*n, parameters)).collect(),
        });
    }
    Ok(choices)
}

fn choices_table(choices: &[Choice], config: &DecoderConfig) -> String {
    let row = |choice: &Choice| {
        let sizes = [
            format!("{:.2}x", choice.compression_ratio),
            choice.d_latent.to_string(),
            bytes(choice.cache_bytes_a_token as u64),
            bytes(choice.cache_bytes_4096),
        ];
        sizes.into_iter().chain(choice.shares.iter().cloned()).collect()
    };
    let rows: Vec<Vec<String>> = choices.iter().map(row).collect();
    let trains = counted(config).map(|method| format!("{} trains", method.title()));
    let [separate, xkv, cascade] = trains.each_ref().map(String::as_str);
    table(&["ratio", "d_latent", "a token", "4096 tokens", separate, xkv, cascade], &rows)
}

/// The layers of the `shrink.json` beside a configuration.
fn recorded_layers(config: &Path) -> anyhow::Result<Option<Vec<LayerReport>>> {
    let folder = if config.is_dir() { config } else { config.parent().unwrap_or(Path::new(".")) };
    Ok(Record::read(folder)?.and_then(|record| record.layers))
}

fn converted(config: &DecoderConfig, section: &MlaSection, layers: Option<&[LayerReport]>) -> String {
    let shown = |number: Option<String>| number.unwrap_or_else(|| "-".into());
    let percent = |share: f64| format!("{:.2}%", 100.0 * share);
    let row = |(layer, ranks): (usize, &Option<handlers::LayerRanks>)| {
        let report = layers.and_then(|layers| layers.get(layer));
        let energy = |pick: fn(&LayerReport) -> &Option<SpectrumReport>| {
            shown(report.and_then(|report| pick(report).as_ref()).map(|latent| percent(latent.energy_kept)))
        };
        let shared = config.latent(layer).map_or(0, LatentConfig::d_rope);
        let beside = if shared > 0 { format!("shared {shared} + ") } else { String::new() };
        let [k, v, energy_k, energy_v] = match ranks.as_ref().map(|ranks| ranks.width) {
            None => ["original".to_owned(), "original".to_owned(), "-".into(), "-".into()],
            Some(LatentWidth::Split { d_latent_k, d_latent_v }) => [
                d_latent_k.to_string(),
                d_latent_v.to_string(),
                energy(|report| &report.key),
                energy(|report| &report.value),
            ],
            Some(LatentWidth::Joint { d_latent }) => {
                [format!("{beside}joint {d_latent}"), "-".into(), energy(|report| &report.joint), "-".into()]
            }
        };
        let found = report.filter(|report| report.latents().next().is_some());
        let measured = report.and_then(|report| report.measured);
        vec![
            layer.to_string(),
            k,
            v,
            energy_k,
            energy_v,
            shown(found.map(|report| format!("{:.2e}", report.discarded()))),
            shown(measured.and_then(|measured| measured.key).map(percent)),
            shown(measured.map(|measured| percent(measured.value))),
        ]
    };
    let rows: Vec<_> = section.layers.iter().enumerate().map(row).collect();
    let titles =
        ["layer", "d_latent K", "d_latent V", "energy K", "energy V", "predicted loss", "error K", "error V"];
    format!(
        "converted: method {}, objective {}, cache {:.2}x smaller than the donor's\n\n{}",
        section.method,
        section.objective,
        config.compression_ratio(),
        table(&titles, &rows)
    )
}
