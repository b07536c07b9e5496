//! Telling quantised checkpoints: by what `config.json` declares, and by the tensors themselves.
//!
//! The tensors decide. A declaration beside plain floats is a left-over, as merging an adapter and dequantising leave it.

use std::collections::HashSet;
use std::path::Path;

use serde_json::{Map, Value};

use crate::checkpoint::Checkpoint;
use crate::config_json::ConfigJson;
use crate::error::Error;
use crate::spec::TensorSpec;

/// What to do about a quantised checkpoint.
pub(crate) const HINT: &str = "take the model it was made from, in bf16, f16 or f32: its card names it as base_model (for one \
                               that was only published so, such as gpt-oss in MXFP4, a copy that somebody dequantised)";

/// Where a configuration declares it: transformers, older compressed-tensors, MLX.
const SECTIONS: [&str; 3] = ["quantization_config", "compression_config", "quantization"];
/// Where the language model of a larger one is described.
const NESTED: [&str; 3] = ["text_config", "language_config", "llm_config"];

/// How a method's tensors are named: their end, what a plain weight has in its place, and who names them so.
const MARKS: [(&str, &str, &str); 14] = [
    (".qweight", ".weight", "GPTQ or AWQ"),
    (".qzeros", ".weight", "GPTQ or AWQ"),
    (".weight_scale_inv", ".weight", "FP8"),
    (".absmax", "", "bitsandbytes, 4 bits"),
    (".quant_map", "", "bitsandbytes, 4 bits"),
    (".SCB", ".weight", "bitsandbytes, 8 bits"),
    ("_blocks", "", "MXFP4"),
    (".weight_packed", ".weight", "compressed-tensors"),
    (".weight_scale", ".weight", "compressed-tensors"),
    (".codebooks", ".weight", "AQLM"),
    (".trellis", ".weight", "EXL3"),
    (".q_weight", ".weight", "EXL2"),
    (".W_q", ".weight", "HQQ"),
    (".scales", ".weight", "MLX"),
];

/// The method by which `config.json` says that the weights are quantised: `GPTQ, 4 bits`. The weights may be plain all the same.
pub fn declared(config: &ConfigJson) -> Option<String> {
    let fields = config.fields();
    let nested = NESTED.iter().filter_map(|name| fields.get(*name)?.as_object());
    let sections = std::iter::once(fields).chain(nested);
    let mut declared = sections
        .flat_map(|fields| SECTIONS.iter().filter_map(|&name| Some((name, fields.get(name)?.as_object()?))));
    declared.next().map(|(name, section)| title(name, section))
}

/// How a model's weights are quantised, as far as its files tell: by the weights' headers where they are there, else by
/// `config.json` (of a folder, or the file itself).
pub fn quantisation(path: &Path, config: &ConfigJson, specs: &[TensorSpec]) -> Option<String> {
    let folder = if path.is_dir() { path } else { path.parent()? };
    match Checkpoint::open(folder) {
        Err(_) => declared(config),
        Ok(checkpoint) => match check(config, specs, &checkpoint) {
            Err(Error::Quantised { scheme, .. }) => Some(scheme),
            _ => None,
        },
    }
}

/// The configuration without any declaration, for weights that are plain.
pub(crate) fn remove_declaration(fields: &mut Map<String, Value>) {
    for name in
        SECTIONS.iter().filter(|name| fields.get(**name).is_some_and(Value::is_object)).collect::<Vec<_>>()
    {
        fields.shift_remove(*name);
    }
    for nested in NESTED {
        if let Some(Value::Object(fields)) = fields.get_mut(nested) {
            remove_declaration(fields);
        }
    }
}

fn title(section: &str, fields: &Map<String, Value>) -> String {
    let text = |field: &str| fields.get(field).and_then(Value::as_str).map(str::to_lowercase);
    let is_set = |field: &str| fields.get(field).and_then(Value::as_bool) == Some(true);
    let method = text("quant_method").or_else(|| text("quant_algo"));
    let name = match method.as_deref() {
        Some("gptq") => "GPTQ",
        Some("awq") => "AWQ",
        Some("fp8" | "fbgemm_fp8" | "finegrained_fp8") => "FP8",
        Some("mxfp4") => "MXFP4",
        Some("nvfp4") => "NVFP4",
        Some("aqlm") => "AQLM",
        Some("hqq") => "HQQ",
        Some("exl2") => "EXL2",
        Some("exl3") => "EXL3",
        Some(other) => &other.chars().filter(|c| !c.is_control()).take(40).collect::<String>(),
        None if is_set("load_in_4bit") || is_set("load_in_8bit") => "bitsandbytes",
        None if section == "quantization" => "MLX",
        None if section == "compression_config" => "compressed-tensors",
        None => "by a method that is not named",
    };
    let bits = ["bits", "w_bit"].iter().find_map(|field| fields.get(*field)?.as_u64());
    let bits = bits.or(is_set("load_in_4bit").then_some(4)).or(is_set("load_in_8bit").then_some(8));
    bits.map_or(name.to_owned(), |bits| format!("{name}, {bits} bits"))
}

/// The first of some tensors' names that a quantised checkpoint has, given that the configuration declares one.
pub(crate) fn mark<'a>(names: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    names.into_iter().find(|name| MARKS.iter().any(|(end, ..)| name.ends_with(end)))
}

/// Refuses a checkpoint whose needed weights are not plain floats, by what they are.
///
/// # Errors
/// When they are quantised.
pub(crate) fn check(config: &ConfigJson, specs: &[TensorSpec], checkpoint: &Checkpoint) -> Result<(), Error> {
    let Some((key, found)) = marked(checkpoint).or_else(|| packed(config, specs, checkpoint)) else {
        return Ok(());
    };
    let scheme = declared(config).unwrap_or(found);
    Err(Error::Quantised { path: checkpoint.folder().into(), scheme, key })
}

/// A tensor that stands in the place of a plain weight, and whose it is. Scales that were left beside a plain weight are none.
fn marked(checkpoint: &Checkpoint) -> Option<(String, String)> {
    let stored = |key: &str| checkpoint.get(key).map(Checkpoint::stored_type);
    checkpoint.keys().find_map(|key| {
        let (stem, (_, weight, scheme)) =
            MARKS.iter().find_map(|mark| Some((key.strip_suffix(mark.0)?, mark)))?;
        let weight = stored(&format!("{stem}{weight}"));
        let is_quantised = match (*scheme, weight.as_deref()) {
            (_, Some("F32" | "F16" | "BF16")) => false,
            ("MXFP4", _) => stored(key).is_some_and(|found| found == "U8"),
            ("MLX", found) => found == Some("U32"),
            _ => true,
        };
        let is_float8 = weight.is_some_and(|found| found.starts_with("F8"));
        let scheme = if is_float8 { "FP8" } else { scheme };
        is_quantised.then(|| (key.to_owned(), scheme.to_owned()))
    })
}

/// A needed tensor in eight-bit floats; or, where the configuration declares a method, in whole numbers or under other names.
fn packed(config: &ConfigJson, specs: &[TensorSpec], checkpoint: &Checkpoint) -> Option<(String, String)> {
    let declared = declared(config);
    let of_module = |key: &str| key.rsplit_once('.').map(|(module, _)| module.to_owned());
    let others = checkpoint.keys().filter(|key| !key.ends_with(".bias"));
    let modules: HashSet<String> = others.filter_map(of_module).collect();
    specs.iter().find_map(|spec| {
        let scheme = match checkpoint.get(&spec.key).map(Checkpoint::stored_type).as_deref() {
            Some("F32" | "F16" | "BF16") => None,
            Some(found) if found.starts_with("F8") => Some("FP8".to_owned()),
            Some(_) => declared.clone(),
            // Not there under its name, though its module has something.
            None => declared
                .clone()
                .filter(|_| of_module(&spec.key).is_some_and(|module| modules.contains(&module))),
        };
        scheme.map(|scheme| (spec.key.clone(), scheme))
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn config(fields: Value) -> ConfigJson {
        let Value::Object(fields) = fields else { panic!("an object") };
        ConfigJson::from_fields("config.json", fields)
    }

    #[test]
    fn a_declaration_is_named_with_its_bits() {
        for (fields, expected) in [
            (json!({ "quantization_config": { "quant_method": "gptq", "bits": 4 } }), "GPTQ, 4 bits"),
            (json!({ "quantization_config": { "quant_method": "awq", "w_bit": 4 } }), "AWQ, 4 bits"),
            (json!({ "quantization_config": { "load_in_4bit": true } }), "bitsandbytes, 4 bits"),
            (
                json!({ "quantization_config": { "quant_method": "bitsandbytes", "load_in_8bit": true } }),
                "bitsandbytes, 8 bits",
            ),
            (json!({ "quantization_config": { "quant_method": "fp8" } }), "FP8"),
            (json!({ "quantization_config": { "quant_method": "mxfp4" } }), "MXFP4"),
            (
                json!({ "quantization_config": { "quant_method": "compressed-tensors" } }),
                "compressed-tensors",
            ),
            (json!({ "quantization_config": { "quant_algo": "NVFP4" } }), "NVFP4"),
            (json!({ "quantization": { "group_size": 64, "bits": 4 } }), "MLX, 4 bits"),
            (json!({ "text_config": { "quantization_config": { "quant_method": "fp8" } } }), "FP8"),
            (json!({ "compression_config": { "format": "pack-quantized" } }), "compressed-tensors"),
            (json!({ "quantization_config": {} }), "by a method that is not named"),
        ] {
            let mut config = config(fields);
            assert_eq!(declared(&config).as_deref(), Some(expected));
            let mut fields = config.fields().clone();
            remove_declaration(&mut fields);
            config = ConfigJson::from_fields("config.json", fields);
            assert_eq!(declared(&config), None, "{expected}");
        }
        for plain in [json!({}), json!({ "quantization_config": null }), json!({ "quantization": false })] {
            assert_eq!(declared(&config(plain)), None);
        }
    }

    #[test]
    fn names_alone_tell_most_methods() {
        for name in [
            "model.layers.0.mlp.down_proj.qweight",
            "model.layers.0.mlp.down_proj.weight_scale_inv",
            "model.layers.0.mlp.down_proj.weight.absmax",
            "model.layers.0.mlp.experts.gate_up_proj_blocks",
            "model.layers.0.mlp.down_proj.weight_packed",
        ] {
            assert_eq!(mark(["model.norm.weight", name]), Some(name));
        }
        assert_eq!(mark(["model.norm.weight", "h.0.attn.bias", "model.layers.0.mlp.down_proj.weight"]), None);
    }
}
