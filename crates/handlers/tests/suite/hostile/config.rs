//! `config.json`: not there, not JSON, not of a family we know.

use handlers::{Error, Registry, read_config};
use serde_json::{Value, json};

use super::refuses;
use crate::scratch::Scratch;
use crate::twin::{folder, twins};

#[test]
fn every_twin_describes_itself_from_its_configuration_alone() {
    for name in twins() {
        let by_folder = read_config(&folder(name), &Registry::builtin()).expect("a configuration");
        let by_file = read_config(&folder(name).join("config.json"), &Registry::builtin()).expect("the same");
        assert_eq!(by_folder.1, by_file.1, "{name}");
        assert!(by_folder.2.is_none(), "{name}");
    }
}

#[test]
fn a_folder_without_a_configuration_is_named() {
    let scratch = Scratch::of("llama");
    scratch.remove("config.json");
    refuses!(scratch.open(), Error::Io { action: "read", path, .. } if path.ends_with("config.json"));
    let nowhere = scratch.path("nowhere");
    refuses!(handlers::Model::open(&nowhere, &Registry::builtin()), Error::Io { action: "read", .. });
}

#[test]
fn a_configuration_that_is_no_json_is_named() {
    let scratch = Scratch::of("llama");
    let deep = "[".repeat(100_000);
    for text in ["", "{", "model_type: llama", "{\"model_type\": \"llama\",}", "\u{feff}{}", deep.as_str()] {
        scratch.write("config.json", text);
        refuses!(scratch.open(), Error::Json { path, .. } if path.ends_with("config.json"));
    }
    scratch.write("config.json", [b'{', 0xff, 0xfe, b'}']);
    refuses!(scratch.open(), Error::Json { .. });
}

#[test]
fn a_configuration_that_is_no_object_is_named() {
    let scratch = Scratch::of("llama");
    for text in ["[]", "1", "null", "\"llama\"", "true"] {
        scratch.write("config.json", text);
        refuses!(scratch.open(), Error::BadField { expected, found, .. } if expected == "an object" && found == text);
    }
}

#[test]
fn an_unknown_model_type_lists_the_known_ones_and_how_to_add_one() {
    let scratch = Scratch::of("llama");
    scratch.set("model_type", "acme");
    let error = scratch.open().expect_err("unknown");
    match &error {
        Error::UnknownModelType { found, known, .. } => {
            assert_eq!(found, "acme");
            assert_eq!(*known, Registry::builtin().known());
            assert!(
                ["gpt2", "gemma3_text", "gpt_oss"].iter().all(|name| known.contains(&(*name).to_owned()))
            );
        }
        other => panic!("{other:?}"),
    }
    let hint = error.hint().expect("a hint");
    assert!(hint.contains("docs/adding-a-model.md") && hint.contains("mixtral"), "{hint}");
}

#[test]
fn a_configuration_without_a_model_type_is_named() {
    let scratch = Scratch::of("llama");
    for value in [Value::Null, json!("")] {
        scratch.set("model_type", value);
        refuses!(scratch.open(), Error::MissingField { field, .. } if field == "model_type");
    }
    scratch.set("model_type", 7);
    refuses!(scratch.open(), Error::BadField { field, .. } if field == "model_type");
}
