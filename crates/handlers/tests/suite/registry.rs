//! A family that another project brings: one handler, and everything else serves it.

use handlers::families::Llama;
use handlers::{
    ConfigJson, Error, Existing, FolderPlan, Model, ModelHandler, Output, Registry, TensorSpec, write_folder,
};
use mla_core::{DecoderConfig, Patch};

use crate::conversion::{exact, section};
use crate::scratch::Scratch;
use crate::twin::{Golden, load, logits, open};

/// LLaMA under other names.
struct Acme;

fn renamed(key: &str) -> String {
    key.replace("model.layers.", "acme.").replace("self_attn.", "mixer.").replace("_proj.", ".")
}

impl ModelHandler for Acme {
    fn model_types(&self) -> &[&str] {
        &["acme", "acme-next"]
    }

    fn config(&self, json: &ConfigJson) -> Result<DecoderConfig, Error> {
        Llama.config(json)
    }

    fn tensors(&self, config: &DecoderConfig) -> Vec<TensorSpec> {
        let rename = |spec: TensorSpec| TensorSpec { key: renamed(&spec.key), ..spec };
        Llama.tensors(config).into_iter().map(rename).collect()
    }

    fn is_buffer(&self, key: &str) -> bool {
        key.ends_with(".mask")
    }
}

fn acme() -> Scratch {
    let scratch = Scratch::of("llama");
    scratch.set("model_type", "acme");
    scratch.edit_weights(|tensors| {
        *tensors = tensors.iter().map(|(key, raw)| (renamed(key), raw.clone())).collect();
        let mask = tensors["model.norm.weight"].clone();
        tensors.insert("acme.0.mask".into(), mask.clone());
        tensors.insert("acme.0.unheard".into(), mask);
    });
    scratch
}

fn registry() -> Registry {
    let mut registry = Registry::builtin();
    registry.register(Box::new(Acme));
    registry
}

#[test]
fn a_registered_family_opens_and_converts_like_ours() {
    let scratch = acme();
    assert!(matches!(scratch.open(), Err(Error::UnknownModelType { .. })), "we do not know it");
    let model = Model::open(scratch.folder(), &registry()).expect("its handler does");
    assert_eq!(model.unused(), ["acme.0.unheard"]);
    let ids = &Golden::of("llama").ids("prefill.ids")[0];
    let expected = logits(&load(&open("llama")), ids);
    assert_eq!(logits(&load(&model), ids), expected);

    let factors = exact(&model);
    let plan = FolderPlan {
        donor: &model,
        section: section(&factors),
        factors: &factors,
        dtype: None,
        extra: Vec::new(),
        max_shard_bytes: u64::MAX,
    };
    let elsewhere = Scratch::empty();
    let out = elsewhere.path("converted");
    let output = Output::prepare(&out, Existing::Keep, model.folder()).expect("a place");
    write_folder(&plan, output, &|_, _| {}).expect("it is written");
    let converted = Model::open(&out, &registry()).expect("a converted model");
    assert!(converted.checkpoint().get("acme.2.mixer.mla.w_down_k").is_some());
    assert_eq!(logits(&load(&converted), ids), logits(&load(&factors.over(&model)), ids));
}

#[test]
fn a_registered_family_may_have_code_of_its_own() {
    let scratch = acme();
    scratch.set("architectures", serde_json::json!(["AcmeLM"]));
    scratch.set("auto_map", serde_json::json!({ "AutoModelForCausalLM": "modeling_acme.AcmeLM" }));
    assert!(Model::open(scratch.folder(), &registry()).is_ok(), "its handler knows that code");
    scratch.set("model_type", "llama");
    assert!(matches!(Model::open(scratch.folder(), &registry()), Err(Error::CustomCode { .. })));
}

#[test]
fn a_registered_family_is_known_by_all_its_names() {
    let ours = Registry::builtin().known();
    assert_eq!(registry().known(), [ours, vec!["acme".to_owned(), "acme-next".to_owned()]].concat());
}

#[test]
fn a_later_registration_replaces_ours() {
    struct Refusing;
    impl ModelHandler for Refusing {
        fn model_types(&self) -> &[&str] {
            &["llama"]
        }
        fn config(&self, json: &ConfigJson) -> Result<DecoderConfig, Error> {
            Err(json.missing("licence"))
        }
        fn tensors(&self, _: &DecoderConfig) -> Vec<TensorSpec> {
            Vec::new()
        }
    }
    let mut registry = Registry::builtin();
    registry.register(Box::new(Refusing));
    let scratch = Scratch::of("llama");
    let error = Model::open(scratch.folder(), &registry).expect_err("it refuses");
    assert!(matches!(error, Error::MissingField { field, .. } if field == "licence"));
}
