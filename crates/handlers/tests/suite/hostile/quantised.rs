//! Checkpoints that are not plain floats, and configurations that only say so.

use handlers::{Error, FolderPlan, quantisation};
use safetensors::Dtype;
use serde_json::{Value, json};

use super::refuses;
use crate::conversion::{exact, section as of};
use crate::scratch::{Raw, Scratch};

const WEIGHT: &str = "model.layers.1.mlp.down_proj.weight";

/// The twin with one weight replaced by others; `None` leaves it.
fn scratch_with(declared: Value, weight: Option<Dtype>, others: &[(&str, Dtype)]) -> Scratch {
    let scratch = Scratch::of("llama");
    scratch.set("quantization_config", declared);
    scratch.edit_weights(|tensors| {
        let plain = tensors.remove(WEIGHT).expect("a weight");
        if let Some(dtype) = weight {
            let raw = match dtype {
                Dtype::F32 => plain,
                _ => {
                    let bytes = vec![0; plain.shape.iter().product::<usize>() * dtype.bitsize() / 8];
                    Raw { dtype, shape: plain.shape, bytes }
                }
            };
            tensors.insert(WEIGHT.into(), raw);
        }
        for &(key, dtype) in others {
            let bytes = vec![0; 8 * dtype.bitsize() / 8];
            tensors.insert(key.into(), Raw { dtype, shape: vec![8], bytes });
        }
    });
    scratch
}

fn beside(end: &str) -> String {
    WEIGHT.replace(".weight", end)
}

#[test]
fn a_quantised_checkpoint_is_named_as_what_it_is() {
    let names = [
        ".qweight",
        ".qzeros",
        ".weight_scale_inv",
        ".weight.absmax",
        ".SCB",
        ".weight_packed",
        ".weight_scale",
        ".weight_blocks",
        ".codes",
        ".codebooks",
        ".scales",
    ]
    .map(beside);
    let [qweight, qzeros, scale_inv, absmax, scb, packed, scale, blocks, codes, codebooks, scales] =
        names.each_ref().map(String::as_str);
    let none = Value::Null;
    for (declared, weight, others, expected) in [
        (json!({ "quant_method": "gptq", "bits": 4 }), None, vec![(qweight, Dtype::I32)], "GPTQ, 4 bits"),
        (json!({ "quant_method": "awq", "bits": 4 }), None, vec![(qweight, Dtype::I32)], "AWQ, 4 bits"),
        (none.clone(), None, vec![(qweight, Dtype::I32), (qzeros, Dtype::I32)], "GPTQ or AWQ"),
        (json!({ "quant_method": "fp8" }), Some(Dtype::F8_E4M3), vec![(scale_inv, Dtype::F32)], "FP8"),
        (none.clone(), Some(Dtype::F8_E4M3), vec![(scale_inv, Dtype::F32)], "FP8"),
        (none.clone(), Some(Dtype::F8_E5M2), vec![(scale, Dtype::F32)], "FP8"),
        (none.clone(), Some(Dtype::F8_E4M3), vec![], "FP8"),
        (
            json!({ "load_in_4bit": true }),
            Some(Dtype::U8),
            vec![(absmax, Dtype::F32)],
            "bitsandbytes, 4 bits",
        ),
        (none.clone(), Some(Dtype::U8), vec![(absmax, Dtype::F32)], "bitsandbytes, 4 bits"),
        (none.clone(), Some(Dtype::I8), vec![(scb, Dtype::F32)], "bitsandbytes, 8 bits"),
        (none.clone(), None, vec![(blocks, Dtype::U8)], "MXFP4"),
        (json!({ "quant_method": "mxfp4" }), None, vec![(blocks, Dtype::U8)], "MXFP4"),
        (none.clone(), None, vec![(packed, Dtype::I32)], "compressed-tensors"),
        (none.clone(), Some(Dtype::I8), vec![(scale, Dtype::F32)], "compressed-tensors"),
        (none.clone(), None, vec![(codes, Dtype::I8), (codebooks, Dtype::F16)], "AQLM"),
        (none.clone(), Some(Dtype::U32), vec![(scales, Dtype::F16)], "MLX"),
        // What nobody has listed: whole numbers, or other names, where the configuration says so.
        (json!({ "quant_method": "acme" }), Some(Dtype::U8), vec![], "acme"),
        (json!({ "quant_method": "acme" }), None, vec![(codes, Dtype::I8)], "acme"),
    ] {
        let scratch = scratch_with(declared.clone(), weight, &others);
        let error = scratch.open().expect_err(expected);
        assert!(
            matches!(&error, Error::Quantised { scheme, key, .. } if scheme == expected && key.contains("down_proj")),
            "{expected}: {error:?}"
        );
        assert!(error.hint().is_some_and(|hint| hint.contains("base_model")));
    }
}

#[test]
fn whole_numbers_that_nobody_declares_are_only_a_wrong_type() {
    for dtype in [Dtype::U8, Dtype::I8, Dtype::I32] {
        let scratch = scratch_with(Value::Null, Some(dtype), &[]);
        refuses!(scratch.open(), Error::UnsupportedDtype { key, .. } if key == WEIGHT);
    }
}

#[test]
fn a_missing_tensor_is_missing_whatever_is_declared() {
    let scratch = scratch_with(json!({ "quant_method": "gptq" }), None, &[]);
    refuses!(scratch.open(), Error::MissingTensors { keys, .. } if *keys == [WEIGHT]);
}

#[test]
fn a_declaration_beside_plain_floats_is_noted_and_not_handed_on() {
    let left = beside(".weight_scale");
    for (section, declared) in [
        ("quantization_config", json!({ "quant_method": "bitsandbytes", "load_in_4bit": true })),
        ("quantization_config", json!({ "quant_method": "gptq", "bits": 4 })),
        ("compression_config", json!({ "format": "dense" })),
    ] {
        // A scale that was left beside a plain weight makes it no other.
        let scratch = scratch_with(Value::Null, Some(Dtype::F32), &[(&left, Dtype::F32)]);
        scratch.set(section, declared);
        let model = scratch.open().expect("the weights are plain");
        let notes = model.notes();
        assert!(notes.len() == 1 && notes[0].contains("ignored"), "{notes:?}");
        assert_eq!(quantisation(scratch.folder(), model.json(), model.specs()), None);

        let (factors, elsewhere) = (exact(&model), Scratch::empty());
        let plan = FolderPlan {
            donor: &model,
            section: of(&factors),
            factors: &factors,
            dtype: None,
            extra: Vec::new(),
            max_shard_bytes: u64::MAX,
        };
        let out = elsewhere.path("out");
        let output =
            handlers::Output::prepare(&out, handlers::Existing::Keep, model.folder()).expect("a place");
        handlers::write_folder(&plan, output, &|_, _| {}).expect("it is written");
        let written = handlers::Model::open(&out, &handlers::Registry::builtin()).expect("a model");
        assert!(written.json().get(section).is_none() && written.notes().is_empty());
    }
}

#[test]
fn a_configuration_alone_is_believed_and_headers_more() {
    let declared = json!({ "quant_method": "gptq", "bits": 4 });
    let scratch = scratch_with(declared, Some(Dtype::F32), &[]);
    let model = scratch.open().expect("a model");
    let told = |path: &std::path::Path| quantisation(path, model.json(), model.specs());
    assert_eq!(told(scratch.folder()), None);
    assert_eq!(told(&scratch.path("config.json")), None);
    scratch.remove("model.safetensors");
    assert_eq!(told(scratch.folder()).as_deref(), Some("GPTQ, 4 bits"));
}
