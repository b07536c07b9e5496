//! `shrink inspect`.

use calib::{Plan, Width};
use handlers::hub::Need;
use handlers::{ConfigJson, MlaSection, read_config};
use mla_core::DecoderConfig;
use mla_core::decoder::PositionKind;
use serde_json::{Value, json};

use crate::args::InspectArgs;
use crate::report::{bytes, table};
use crate::session::Session;

/// Bytes of a cached number in the tables: bf16 or f16.
const ELEMENT_BYTES: usize = 2;

/// Describes a model from its configuration; no weights are read.
pub fn run(session: &Session, args: &InspectArgs) -> anyhow::Result<()> {
    let found = session.find(&args.model, Need::ConfigOnly)?;
    let (json_config, config, section) = read_config(&found.path, &session.registry)?;
    let family = json_config.text_or("model_type", "")?.to_owned();
    let mut object = describe(&family, &config);
    let mut text = sentences(&family, &config);
    match section {
        Some(section) => {
            object["mla"] = json!(section);
            let layers = recorded_layers(&found.path)?;
            text += &converted(&config, &section, &layers);
            object["layers"] = layers;
        }
        None => {
            let choices = choices(&config, &args.compression_ratio)?;
            text += &format!("methods that apply: separate\n\n{}", choices_table(&choices));
            object["methods"] = json!(["separate"]);
            object["choices"] = json!(choices);
        }
    }
    session.print(&object, &text)
}

fn describe(family: &str, config: &DecoderConfig) -> Value {
    json!({
        "family": family,
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
        "cache_bytes_a_token": config.cached_numbers_total() * ELEMENT_BYTES,
        "compression_ratio": config.compression_ratio(),
    })
}

fn sentences(family: &str, config: &DecoderConfig) -> String {
    let position = match &config.position {
        PositionKind::Learned => "learned positions".to_owned(),
        PositionKind::Rope(rope) => format!("RoPE, theta {}", rope.theta),
    };
    let windowed = config.layers.iter().filter(|l| l.window.is_some()).count();
    let window = match (windowed, config.layers.iter().find_map(|l| l.window)) {
        (n, Some(window)) => format!(", sliding window {window} on {n} layers"),
        _ => String::new(),
    };
    format!(
        "{family}: {sharing}, {layers} layers, d_model {d_model}\n\
         {heads} query heads, {kv} kv heads of {d_head}: d_kv {d_kv}\n\
         {position}, context {context}{window}\n\
         cache a token, 16 bit: {cache}\n",
        sharing = config.sharing(),
        layers = config.n_layers(),
        d_model = config.d_model,
        heads = config.n_heads,
        kv = config.n_kv_heads,
        d_head = config.d_head,
        d_kv = config.d_kv(),
        context = config.max_positions,
        cache = bytes((config.cached_numbers_total() * ELEMENT_BYTES) as u64),
    )
}

/// What a ratio would give.
#[derive(serde::Serialize)]
struct Choice {
    compression_ratio: f64,
    d_latent: usize,
    cache_bytes_a_token: usize,
    cache_bytes_4096: u64,
}

/// Ratios beyond d_kv are left out of the table; one below 1, or that is no number, is an error.
fn choices(config: &DecoderConfig, ratios: &[f64]) -> anyhow::Result<Vec<Choice>> {
    let mut choices = Vec::new();
    let beyond = |ratio: f64| ratio > config.d_kv() as f64;
    for &ratio in ratios.iter().filter(|&&ratio| !beyond(ratio)) {
        let plan = Plan::new(config, Width::Ratio(ratio))?;
        let converted = plan.apply(config);
        choices.push(Choice {
            compression_ratio: converted.compression_ratio(),
            d_latent: plan.d_latent,
            cache_bytes_a_token: converted.cached_numbers_total() * ELEMENT_BYTES,
            cache_bytes_4096: train::eval::cache_sizes(&converted, &[4096], 1, ELEMENT_BYTES)[0].model_bytes,
        });
    }
    Ok(choices)
}

fn choices_table(choices: &[Choice]) -> String {
    let row = |choice: &Choice| {
        vec![
            format!("{:.2}x", choice.compression_ratio),
            choice.d_latent.to_string(),
            bytes(choice.cache_bytes_a_token as u64),
            bytes(choice.cache_bytes_4096),
        ]
    };
    let rows: Vec<_> = choices.iter().map(row).collect();
    table(&["ratio", "d_latent", "a token", "4096 tokens"], &rows)
}

/// The layers of `shrink.json`; `null` where the folder has none.
fn recorded_layers(folder: &std::path::Path) -> anyhow::Result<Value> {
    let path = folder.join("shrink.json");
    if !path.exists() {
        return Ok(Value::Null);
    }
    Ok(ConfigJson::read(&path)?.get("layers").cloned().unwrap_or(Value::Null))
}

fn converted(config: &DecoderConfig, section: &MlaSection, layers: &Value) -> String {
    let kept = |layer: usize, part: &str| match layers[layer][part]["energy_kept"].as_f64() {
        Some(kept) => format!("{:.2}%", 100.0 * kept),
        None => "-".into(),
    };
    let row = |(layer, ranks): (usize, &Option<handlers::LayerRanks>)| match ranks {
        None => vec![layer.to_string(), "original".into(), "original".into(), "-".into(), "-".into()],
        Some(ranks) => vec![
            layer.to_string(),
            ranks.d_latent_k.to_string(),
            ranks.d_latent_v.to_string(),
            kept(layer, "key"),
            kept(layer, "value"),
        ],
    };
    let rows: Vec<_> = section.layers.iter().enumerate().map(row).collect();
    format!(
        "converted: method {}, metric {}, cache {:.2}x smaller than the donor's\n\n{}",
        section.method,
        section.objective,
        config.compression_ratio(),
        table(&["layer", "d_latent K", "d_latent V", "energy K", "energy V"], &rows)
    )
}
