//! What a converted folder calls itself, so that no program takes it for its donor, and the code by which transformers runs it.
//!
//! A program that does not know latents would load such a folder as the donor's architecture and start `W_k` and `W_v` from
//! random numbers, with no more than a warning. So `model_type` and `architectures` are our own, and the donor's stand inside
//! the `mla` section. Folders of before that have the donor's in their place, and are read as they are.

use serde_json::{Map, Value, json};

use crate::config_json::ConfigJson;
use crate::error::Error;

/// `model_type` of a converted folder.
pub const MODEL_TYPE: &str = "shrink";
/// The class that runs it.
const ARCHITECTURE: &str = "ShrinkForCausalLM";
/// What the donor has of the fields that are our own.
const FIELDS: [&str; 3] = ["model_type", "architectures", "auto_map"];

/// The files by which transformers opens a converted folder, by name (`trust_remote_code=True`). They need nothing of shrink's.
pub(crate) const CODE: [(&str, &str); 2] = [
    ("configuration_shrink.py", include_str!("../../../../python/modeling/configuration_shrink.py")),
    ("modeling_shrink.py", include_str!("../../../../python/modeling/modeling_shrink.py")),
];

/// Puts our own names in the place of the donor's, and those into the section.
pub(crate) fn take_name(fields: &mut Map<String, Value>, section: &mut Value) {
    let theirs = FIELDS.iter().filter_map(|&field| Some((field.to_owned(), fields.get(field)?.clone())));
    section["donor"] = Value::Object(theirs.collect());
    fields.insert("model_type".into(), MODEL_TYPE.into());
    fields.insert("architectures".into(), json!([ARCHITECTURE]));
    let classes = json!({
        "AutoConfig": "configuration_shrink.ShrinkConfig",
        "AutoModelForCausalLM": format!("modeling_shrink.{ARCHITECTURE}"),
    });
    fields.insert("auto_map".into(), classes);
}

/// The configuration as the donor had it, but for the `mla` section.
///
/// # Errors
/// When a folder of ours does not say what its donor is.
pub(crate) fn donors(json: ConfigJson) -> Result<ConfigJson, Error> {
    if json.get("model_type").and_then(Value::as_str) != Some(MODEL_TYPE) {
        return Ok(json);
    }
    let donor = json.object("mla")?.map(|section| section.object("donor")).transpose()?.flatten();
    let Some(donor) = donor else {
        let expected = "the donor's model_type, which a converted folder has".to_owned();
        return Err(json.bad("mla.donor", expected, &Value::Null));
    };
    let mut fields = json.fields().clone();
    for field in FIELDS {
        match donor.fields().get(field) {
            Some(value) => fields.insert(field.into(), value.clone()),
            None => fields.shift_remove(field),
        };
    }
    Ok(ConfigJson::from_fields(json.path(), fields))
}
