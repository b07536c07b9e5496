//! What of a model is fetched, in which order, and what is refused before it costs anything.

use std::collections::BTreeMap;

use handlers::hub::{Hub, HubError, ModelFolder};
use handlers::{Error, Registry, read_config};
use serde_json::{Value, json};

use super::server::TestHub;
use super::{Client, large, tiny_hub, whole};
use crate::scratch::raw_file;

impl Client {
    /// Everything of a model whose configuration can be read.
    fn known(&self) -> Result<ModelFolder, HubError> {
        let accept = |folder: &std::path::Path| read_config(folder, &Registry::builtin()).map(drop);
        Hub::new(self.settings.clone()).resolve_if(super::MODEL, &accept, &())
    }
}

/// A configuration that can be read, with some fields more.
fn config(more: Value) -> Vec<u8> {
    let mut config = json!({
        "model_type": "llama", "hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8,
        "num_hidden_layers": 1, "vocab_size": 8,
    });
    for (field, value) in more.as_object().expect("fields") {
        config[field] = value.clone();
    }
    config.to_string().into_bytes()
}

/// A safetensors file of tensors with some names and little else.
fn weights(names: &[&str]) -> Vec<u8> {
    let tensors: BTreeMap<&str, Value> = names
        .iter()
        .enumerate()
        .map(|(i, &name)| {
            (name, json!({ "dtype": "U8", "shape": [900], "data_offsets": [900 * i, 900 * (i + 1)] }))
        })
        .collect();
    raw_file(json!(tensors).to_string().as_bytes(), &large(1, 900 * names.len()))
}

fn hub_with(files: &[(&str, Vec<u8>)]) -> TestHub {
    let hub = tiny_hub();
    for (name, content) in files {
        hub.state().files.insert((*name).to_owned(), content.clone());
    }
    hub
}

#[test]
fn a_model_that_nobody_can_use_costs_its_configuration_alone() {
    for fields in [
        json!({ "model_type": "acme" }),
        json!({ "model_type": "mamba" }),
        json!({ "model_type": "t5" }),
        json!({ "model_type": "deepseek_v3", "kv_lora_rank": 512 }),
        json!({ "model_type": null }),
        json!({ "num_key_value_heads": 3 }),
    ] {
        let hub = hub_with(&[("config.json", config(fields.clone()))]);
        let error = Client::new(&hub).known().expect_err("it is refused");
        assert!(matches!(error, HubError::NotAccepted(_)), "{fields}: {error:?}");
        assert!(error.hint().is_some(), "{fields}");
        assert_eq!(hub.take_gets(), [whole("config.json")], "{fields}");
    }
    let hub = hub_with(&[("config.json", b"not JSON".to_vec())]);
    let error = Client::new(&hub).known().expect_err("it is refused");
    assert!(
        matches!(&error, HubError::NotAccepted(error) if matches!(**error, Error::Json { .. })),
        "{error:?}"
    );
    assert_eq!(hub.take_gets(), [whole("config.json")]);
}

#[test]
fn a_model_that_can_be_used_is_fetched_as_ever() {
    let hub = hub_with(&[("config.json", config(json!({})))]);
    let client = Client::new(&hub);
    let model = client.known().expect("a model");
    let needed =
        ["config.json", "tokenizer.json", "README.md", "generation_config.json", "model.safetensors"];
    assert_eq!(hub.take_gets(), needed.map(whole));
    assert_eq!(client.known().expect("the cached model"), model);
    assert_eq!(hub.take_log().len(), 1, "one question after the branch");
}

#[test]
fn quantised_weights_are_looked_into_and_not_fetched() {
    let declared = config(json!({ "quantization_config": { "quant_method": "gptq", "bits": 4 } }));
    let key = "model.layers.0.mlp.down_proj.qweight";
    let hub = hub_with(&[
        ("config.json", declared.clone()),
        ("model.safetensors", weights(&[key, "model.norm.weight"])),
    ]);
    for ignores_ranges in [false, true] {
        hub.state().ignores_ranges = ignores_ranges;
        match Client::new(&hub).known() {
            Err(HubError::Quantised { scheme, key: found, .. }) => {
                assert_eq!((scheme.as_str(), found.as_str()), ("GPTQ, 4 bits", key));
            }
            other => panic!("{other:?}"),
        }
        let gets = hub.take_gets();
        assert_eq!(gets.len(), 2, "{gets:?}");
        assert!(gets[1].0 == "model.safetensors" && gets[1].1.is_some(), "only its first bytes: {gets:?}");
    }

    let index =
        json!({ "weight_map": { key: "model-1.safetensors", "model.norm.weight": "model-2.safetensors" } });
    hub.state().files.remove("model.safetensors");
    hub.state().files.insert("model.safetensors.index.json".into(), index.to_string().into_bytes());
    let error = Client::new(&hub).known().expect_err("the index tells it");
    assert!(matches!(error, HubError::Quantised { .. }), "{error:?}");
    assert!(error.hint().is_some_and(|hint| hint.contains("base_model")));
    assert_eq!(hub.take_gets(), ["config.json", "model.safetensors.index.json"].map(whole));
}

#[test]
fn a_declaration_beside_plain_weights_is_no_reason_to_refuse() {
    let declared = config(json!({ "quantization_config": { "load_in_4bit": true } }));
    let plain = weights(&["model.norm.weight", "lm_head.weight"]);
    let hub = hub_with(&[("config.json", declared), ("model.safetensors", plain.clone())]);
    let client = Client::new(&hub);
    let model = client.known().expect("a model");
    assert_eq!(std::fs::read(model.path.join("model.safetensors")).expect("the weights"), plain);
    // A file whose header cannot be told is not judged here.
    hub.state().files.insert("model.safetensors".into(), large(3, 2000));
    Client::new(&hub).known().expect("the weights are judged when they are opened");
}

#[test]
fn numbered_shards_need_no_index() {
    let hub = tiny_hub();
    hub.state().files.remove("model.safetensors");
    for number in [1, 2] {
        hub.state().files.insert(format!("model-0000{number}-of-00002.safetensors"), large(number, 2000));
    }
    let mut client = Client::new(&hub);
    let model = client.everything().expect("a whole set");
    for number in [1, 2] {
        let path = model.path.join(format!("model-0000{number}-of-00002.safetensors"));
        assert_eq!(std::fs::read(path).expect("a shard"), large(number, 2000));
    }
    client.settings.offline = true;
    assert_eq!(client.everything().expect("the cached set"), model);
    let second = model.path.join("model-00002-of-00002.safetensors");
    std::fs::remove_file(second).expect("a shard goes");
    match client.everything() {
        Err(HubError::NotCached { file, .. }) => assert_eq!(file, "model-00002-of-00002.safetensors"),
        other => panic!("{other:?}"),
    }

    hub.state().files.remove("model-00001-of-00002.safetensors");
    hub.take_log();
    let error = Client::new(&hub).everything().expect_err("half a set");
    assert!(
        matches!(&error, HubError::FileNotFound { file, .. } if file == "model-00001-of-00002.safetensors"),
        "{error:?}"
    );
    assert!(error.hint().is_some());
    assert_eq!(hub.take_gets(), [whole("config.json")]);
}

#[test]
fn licences_notices_and_vocabularies_come_with_a_model() {
    let beside = [
        "LICENSE",
        "LICENSE-MODEL.txt",
        "Notice.md",
        "USE_POLICY.md",
        "added_tokens.json",
        "merges.txt",
        "tekken.json",
        "tokenizer.model",
        "vocab.json",
    ];
    let files: Vec<(&str, Vec<u8>)> = beside.iter().map(|&name| (name, name.as_bytes().to_vec())).collect();
    let hub = hub_with(&files);
    hub.state().files.insert("original/LICENSE".into(), b"of another format".to_vec());
    let client = Client::new(&hub);
    let model = client.everything().expect("a model");
    for name in beside {
        assert_eq!(std::fs::read(model.path.join(name)).expect("a file"), name.as_bytes(), "{name}");
    }
    // The card says which licence it is; what shrink wrote is described by its record, too.
    assert!(model.path.join("README.md").exists() && !model.path.join("original").exists());
    hub.state().files.insert("shrink.json".into(), b"{}".to_vec());
    let model = client.everything().expect("a converted model");
    assert!(model.path.join("shrink.json").exists());
}

#[test]
fn a_data_set_is_found_at_a_revision_with_slashes() {
    let hub = TestHub::new("datasets/org/text", &[("en/partial-train/0000.parquet", large(1, 2000))]);
    hub.state().branch = Some("refs/convert/parquet".into());
    let client = Client::new(&hub);
    let name = "org/text@refs/convert/parquet";
    let fetch = |subset: &str| Hub::new(client.settings.clone()).dataset_files(name, subset, "train", &());
    let files = fetch("en").expect("the split");
    assert!(files[0].ends_with("en/partial-train/0000.parquet"), "{}", files[0].display());
    match fetch("de") {
        Err(error @ HubError::NoSplit { .. }) => {
            assert!(error.hint().is_some_and(|hint| hint.contains("subset")))
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_data_set_without_parquet_files_is_told_where_the_hub_has_them() {
    let hub = TestHub::new("datasets/org/text", &[("en/c4-train.00000-of-01024.json.gz", large(1, 20))]);
    let client = Client::new(&hub);
    let fetch = |name: &str| Hub::new(client.settings.clone()).dataset_files(name, "en", "train", &());
    let error = fetch("org/text").expect_err("there is no parquet file");
    assert!(error.hint().is_some_and(|hint| hint.contains("org/text@refs/convert/parquet")), "{error}");
    hub.state().branch = Some("refs/convert/parquet".into());
    let error = fetch("org/text@refs/convert/parquet").expect_err("nor is there one");
    assert!(error.hint().is_some_and(|hint| !hint.contains("refs/convert")), "no circle: {error}");
}
