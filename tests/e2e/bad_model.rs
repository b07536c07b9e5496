//! Folders that are no model: one clear error with a hint, no panic, and nothing left behind.

use safetensors::Dtype;
use serde_json::json;

use crate::folder::{Scratch, golden};
use crate::program::shrink;

/// Converting, scoring and generating with a folder all say what is wrong with it; returns the hint.
#[track_caller]
fn refuses(model: &str, what: &str) -> String {
    let scratch = Scratch::new();
    let (out, heldout) = (scratch.path("out"), golden("demo/heldout.txt"));
    let hint = shrink(&["convert", model, "-o", &out, "-r", "2", "--no-calibration"]).refused(what);
    shrink(&["convert", model, "-o", &out, "-r", "2", "--calibration", "builtin:prose"]).refused(what);
    shrink(&["eval", model, "--data", &heldout, "--max-length", "32", "--windows", "1"]).refused(what);
    shrink(&["generate", model, "--prompt", "The ship"]).refused(what);
    assert_eq!(scratch.names(), [""; 0], "something was left behind");
    hint
}

/// Every command that reads a configuration says what is wrong with it; returns the hint.
#[track_caller]
fn refuses_config(model: &str, what: &str) -> String {
    shrink(&["inspect", model]).refused(what);
    shrink(&["memory", model]).refused(what);
    refuses(model, what)
}

#[test]
fn a_folder_that_is_not_there() {
    let scratch = Scratch::new();
    let hint = refuses_config(&scratch.path("nowhere"), "nowhere: not found");
    assert!(hint.contains("org/name"), "{hint}");
    refuses_config("./nowhere", "model folder ./nowhere: not found");
}

#[test]
fn a_file_where_a_folder_should_be() {
    let hint = refuses(&golden("llama/model.safetensors"), "expected a folder, found a file");
    assert!(hint.contains("config.json"), "{hint}");
}

#[test]
fn an_empty_folder() {
    let scratch = Scratch::new();
    refuses_config(&scratch.root(), "config.json: No such file");
}

#[test]
fn a_configuration_that_is_no_json() {
    let scratch = Scratch::of("llama");
    for text in ["", "{", "model_type: llama"] {
        scratch.write("config.json", text);
        refuses_config(&scratch.root(), "config.json is not valid JSON");
    }
}

#[test]
fn an_unknown_family_lists_the_known_ones() {
    let scratch = Scratch::of("llama");
    scratch.set("model_type", "acme");
    let hint = refuses_config(&scratch.root(), "model type `acme` is unknown");
    let known = hint.strip_prefix("known types: ").expect("a list");
    assert!(["gpt2,", "llama,", "qwen3_moe,", "smollm3;"].iter().all(|name| known.contains(name)), "{hint}");
}

#[test]
fn a_model_born_with_latent_attention() {
    let scratch = Scratch::of("llama");
    scratch.set("kv_lora_rank", 512);
    scratch.set("model_type", "deepseek_v3");
    let hint = refuses_config(&scratch.root(), "already uses Multi-Head Latent Attention (kv_lora_rank 512)");
    assert!(hint.contains("compressed by design"), "{hint}");
}

#[test]
fn a_model_without_a_cache_in_every_layer() {
    for (model_type, what, why) in [
        (
            "qwen3_next",
            "`qwen3_next` mixes full attention with layers of linear attention",
            "full-attention layers",
        ),
        ("mamba", "`mamba` is recurrent and has no attention", "no keys and values"),
        ("t5", "`t5` is an encoder-decoder", "decoder-only"),
        ("bert", "`bert` is an encoder", "no KV cache"),
    ] {
        let scratch = Scratch::of("llama");
        scratch.set("model_type", model_type);
        let hint = refuses_config(&scratch.root(), what);
        assert!(hint.contains(why), "{hint}");
    }
}

#[test]
fn a_graph_of_its_own_under_the_type_of_another() {
    let scratch = Scratch::of("gpt2");
    scratch.set("attention_head_type", "multiquery");
    scratch.set("architectures", json!(["GPT2LMHeadCustomModel"]));
    let what = "`model_type` is gpt2, but `attention_head_type` is \"multiquery\": another graph";
    let hint = refuses_config(&scratch.root(), what);
    assert!(hint.contains("its own"), "{hint}");
}

#[test]
fn pointers_of_git_lfs_in_the_place_of_files() {
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 9085657\n";
    let scratch = Scratch::of("llama");
    scratch.write("model.safetensors", pointer);
    let what = "model.safetensors: a Git LFS pointer, not the file";
    let hint = refuses(&scratch.root(), what);
    assert!(hint.contains("git lfs pull"), "{hint}");
    scratch.write("config.json", pointer);
    refuses_config(&scratch.root(), "config.json: a Git LFS pointer, not the file");

    let (scratch, outs) = (Scratch::of("llama"), Scratch::new());
    scratch.write("tokenizer.json", pointer);
    let what = "tokenizer.json: a Git LFS pointer, not the file";
    shrink(&["generate", &scratch.root(), "--prompt", "x"]).refused(what);
    shrink(&["convert", &scratch.root(), "-o", &outs.path("out"), "--no-calibration"]).refused(what);
    let rows = outs.write("rows.parquet", pointer);
    let hint =
        shrink(&["eval", &golden("llama"), "--data", &rows]).refused("a Git LFS pointer, not the file");
    assert!(hint.contains("git lfs pull"), "{hint}");
}

#[test]
fn a_quantised_checkpoint() {
    let scratch = Scratch::of("llama");
    scratch.set("quantization_config", json!({ "quant_method": "gptq", "bits": 4 }));
    scratch.edit(|tensors| {
        let mut tensor = tensors.remove("model.layers.1.mlp.down_proj.weight").expect("a weight");
        (tensor.dtype, tensor.shape, tensor.bytes) = (Dtype::I32, vec![4, 32], vec![0; 4 * 4 * 32]);
        tensors.insert("model.layers.1.mlp.down_proj.qweight".into(), tensor);
    });
    let what =
        "the weights are quantised (GPTQ, 4 bits), the first such is model.layers.1.mlp.down_proj.qweight";
    let hint = refuses(&scratch.root(), what);
    assert!(hint.contains("base_model"), "{hint}");
    // Its description is right all the same, but for what could be made of it.
    let told = shrink(&["inspect", &scratch.root()]).text();
    assert!(told.contains("GQA") && told.contains("quantised (GPTQ, 4 bits)"), "{told}");
    assert!(!told.contains("methods that apply"), "{told}");
    let told = shrink(&["inspect", &scratch.root(), "--json"]).json();
    assert_eq!((&told["quantised"], &told["choices"]), (&json!("GPTQ, 4 bits"), &json!([])));
}

#[test]
fn a_configuration_that_calls_plain_weights_quantised() {
    let (scratch, outs) = (Scratch::of("llama"), Scratch::new());
    scratch.set("quantization_config", json!({ "quant_method": "bitsandbytes", "load_in_4bit": true }));
    let out = outs.path("out");
    let run = shrink(&["convert", &scratch.root(), "-o", &out, "-r", "2", "--no-calibration"]);
    assert!(
        run.stderr.contains("note: config.json says that the weights are quantised (bitsandbytes, 4 bits)"),
        "{run:#?}"
    );
    run.text();
    assert!(outs.read_json("out/config.json").get("quantization_config").is_none());
    let run = shrink(&["inspect", &scratch.root()]);
    assert!(run.stderr.contains("plain floats: that is ignored"), "{run:#?}");
    assert!(run.text().contains("methods that apply"));
}

#[test]
fn tensors_that_are_empty() {
    let scratch = Scratch::of("llama");
    scratch.edit(|tensors| {
        for tensor in tensors.values_mut().filter(|tensor| tensor.shape.len() == 2) {
            (tensor.shape, tensor.bytes) = (vec![0], Vec::new());
        }
    });
    let hint = refuses(&scratch.root(), "23 tensor(s) are empty, the first is model.embed_tokens.weight");
    assert!(hint.contains("ZeRO-3"), "{hint}");
}

#[test]
fn a_configuration_that_makes_no_sense() {
    for (field, value, what) in [
        ("num_key_value_heads", json!(3), "expected a divisor of num_attention_heads = 4"),
        ("num_attention_heads", json!(0), "`num_attention_heads` is 0, expected a positive integer"),
        ("hidden_size", json!(-32), "`hidden_size` is -32, expected a positive integer"),
        ("hidden_size", json!("32"), "`hidden_size` is \"32\", expected a positive integer"),
        ("num_hidden_layers", json!(null), "the field `num_hidden_layers` is missing"),
        ("num_hidden_layers", json!(1_000_000), "expected at most"),
        ("rope_scaling", json!({ "type": "ntk", "factor": 4 }), "dynamic, llama3, yarn or longrope"),
        ("hidden_act", json!("softplus"), "expected silu, gelu, gelu_new or relu"),
    ] {
        let scratch = Scratch::of("llama");
        scratch.set(field, value);
        refuses_config(&scratch.root(), what);
    }
}

#[test]
fn sizes_that_no_model_has() {
    let scratch = Scratch::of("llama");
    for field in ["hidden_size", "intermediate_size"] {
        scratch.set(field, i32::MAX - 1);
    }
    for command in ["inspect", "memory"] {
        let hint = shrink(&[command, &scratch.root()]).refused("the sizes give a number of weights of ");
        assert!(hint.contains("config.json"), "{hint}");
    }
}

#[test]
fn weights_in_another_format() {
    let scratch = Scratch::of("llama");
    scratch.remove("model.safetensors");
    refuses(&scratch.root(), "has no model.safetensors");
    scratch.write("pytorch_model.bin", "PK");
    let hint = refuses(
        &scratch.root(),
        "expected weights in model.safetensors or its shards, found pytorch_model.bin",
    );
    assert!(hint.contains("safetensors"), "{hint}");
}

#[test]
fn a_weight_file_cut_short() {
    let scratch = Scratch::of("llama");
    let whole = scratch.read("model.safetensors");
    for len in [0, 7, 8, 1000, whole.len() / 2, whole.len() - 1] {
        scratch.write("model.safetensors", &whole[..len]);
        let hint = refuses(&scratch.root(), "model.safetensors is not a valid safetensors file");
        assert!(hint.contains("download it again"), "{hint}");
    }
}

#[test]
fn a_weight_file_with_something_behind_it() {
    let scratch = Scratch::of("llama");
    let longer = [scratch.read("model.safetensors"), vec![0; 3]].concat();
    scratch.write("model.safetensors", longer);
    refuses(&scratch.root(), "is not a valid safetensors file: the header describes");
}

#[test]
fn a_header_that_claims_more_than_there_is() {
    let scratch = Scratch::of("llama");
    for claim in [u64::MAX, 1 << 62, 100_000_001, 1 << 20] {
        scratch.write("model.safetensors", [&claim.to_le_bytes()[..], b"{}"].concat());
        refuses(&scratch.root(), &format!("the header claims {claim} bytes, the file has 10"));
    }
}

#[test]
fn a_header_whose_offsets_are_wrong() {
    let scratch = Scratch::of("llama");
    let tensor = |start: u64, end: u64| json!({ "dtype": "F32", "shape": [2], "data_offsets": [start, end] });
    for header in [
        json!({ "a": tensor(0, 8), "b": tensor(4, 12) }),
        json!({ "a": tensor(0, 8), "b": tensor(12, 20) }),
        json!({ "a": tensor(0, 8), "b": tensor(0, 8) }),
        json!({ "a": tensor(8, 0), "b": tensor(8, 16) }),
        json!({ "a": tensor(0, 8), "b": tensor(8, u64::MAX) }),
        json!({ "a": { "dtype": "F32", "shape": [u64::MAX, 4], "data_offsets": [0, 16] } }),
        json!({ "a": { "dtype": "F128", "shape": [1], "data_offsets": [0, 16] } }),
        json!(["a"]),
    ] {
        let header = header.to_string().into_bytes();
        let file = [&(header.len() as u64).to_le_bytes()[..], &header, &[0; 16]].concat();
        scratch.write("model.safetensors", file);
        refuses(&scratch.root(), "is not a valid safetensors file: the header");
    }
}

#[test]
fn a_tensor_of_a_type_that_is_no_plain_float() {
    let scratch = Scratch::of("llama");
    scratch.edit(|tensors| {
        let tensor = tensors.get_mut("model.layers.1.self_attn.k_proj.weight").expect("a projection");
        (tensor.dtype, tensor.bytes) = (Dtype::I8, vec![1; tensor.bytes.len() / 4]);
    });
    let hint = refuses(&scratch.root(), "k_proj.weight is stored as I8, expected F32, F16 or BF16");
    assert!(hint.contains("unquantised"), "{hint}");
}

#[test]
fn a_weight_that_is_no_number() {
    for (value, word) in [(f32::NAN, "NaN"), (f32::INFINITY, "inf"), (f32::NEG_INFINITY, "-inf")] {
        for key in [
            "model.layers.2.self_attn.v_proj.weight",
            "model.layers.0.mlp.down_proj.weight",
            "lm_head.weight",
        ] {
            let scratch = Scratch::of("llama");
            scratch.edit(|tensors| tensors.get_mut(key).expect("a tensor").set(5, value));
            let hint = refuses(&scratch.root(), &format!("{key} holds {word} at element 5"));
            assert!(hint.contains("damaged"), "{hint}");
        }
    }
}

#[test]
fn tensors_that_are_missing() {
    let scratch = Scratch::of("qwen2");
    scratch.edit(|tensors| drop(tensors.remove("model.layers.1.self_attn.k_proj.bias")));
    refuses(&scratch.root(), "1 tensor(s) missing, the first is model.layers.1.self_attn.k_proj.bias");
}

#[test]
fn a_configuration_and_tensors_that_disagree() {
    for (field, value, what) in [
        ("num_key_value_heads", 4, "k_proj.weight has shape [32, 32], config.json implies [64, 32]"),
        ("head_dim", 8, "has shape [64, 32], config.json implies [32, 32]"),
        ("vocab_size", 265, "model.embed_tokens.weight has shape [264, 32], config.json implies [265, 32]"),
        ("intermediate_size", 48, "config.json implies [48, 32]"),
        ("num_hidden_layers", 4, "tensor(s) missing, the first is model.layers.3."),
    ] {
        let scratch = Scratch::of("llama");
        scratch.set(field, value);
        let hint = refuses(&scratch.root(), what);
        assert!(hint.contains("do not belong together"), "{hint}");
    }
}

#[test]
fn shards_that_are_missing_from_the_folder_or_from_the_index() {
    let scratch = Scratch::of("llama");
    scratch.shard();
    let second = "model-00002-of-00002.safetensors";
    std::fs::rename(scratch.path(second), scratch.path("aside")).expect("a move");
    let hint = refuses(&scratch.root(), &format!("names 1 shard(s) that are missing, the first is {second}"));
    assert!(hint.contains("download the missing shards"), "{hint}");

    std::fs::rename(scratch.path("aside"), scratch.path(second)).expect("a move");
    let index = scratch.read_json("model.safetensors.index.json");
    let mut places = index["weight_map"].as_object().expect("a map").clone();
    places.retain(|_, shard| shard != second);
    scratch.write("model.safetensors.index.json", json!({ "weight_map": places }).to_string());
    refuses(&scratch.root(), "tensor(s) missing, the first is ");
}

#[test]
fn shards_without_an_index() {
    let (scratch, outs) = (Scratch::of("llama"), Scratch::new());
    scratch.shard();
    scratch.remove("model.safetensors.index.json");
    let run = shrink(&["convert", &scratch.root(), "-o", &outs.path("out"), "-r", "2", "--no-calibration"]);
    assert!(
        run.stderr.contains("note: there is no model.safetensors.index.json; the 2 shard(s)"),
        "{run:#?}"
    );
    run.text();
    scratch.remove("model-00001-of-00002.safetensors");
    let what = "of 2 numbered shards 1 are missing, the first is model-00001-of-00002.safetensors";
    let hint = refuses(&scratch.root(), what);
    assert!(hint.contains("download the missing shards"), "{hint}");
}

#[test]
fn an_index_that_lies() {
    let scratch = Scratch::of("llama");
    scratch.shard();
    let (key, first) = ("lm_head.weight", "model-00001-of-00002.safetensors");
    for (weight_map, what) in [
        (json!({ key: first, "no.such.tensor": first }), "tensor(s) missing, the first is "),
        (json!({ key: "../../../etc/passwd" }), "is not a file name in the folder"),
        (json!({ key: 7 }), "the shard of lm_head.weight is no file name"),
        (json!({}), "it names no tensors"),
        (json!(null), "the field `weight_map` is missing"),
    ] {
        scratch.write("model.safetensors.index.json", json!({ "weight_map": weight_map }).to_string());
        refuses(&scratch.root(), what);
    }
}

#[test]
fn a_tokenizer_that_is_missing_or_none() {
    let (scratch, outs) = (Scratch::of("llama"), Scratch::new());
    let (out, heldout) = (outs.path("out"), golden("demo/heldout.txt"));
    let refuses = |what: &str| {
        shrink(&["convert", &scratch.root(), "-o", &out, "--calibration", "builtin:prose"]).refused(what);
        shrink(&["eval", &scratch.root(), "--data", &heldout]).refused(what);
        shrink(&["generate", &scratch.root(), "--prompt", "x"]).refused(what);
    };
    scratch.write("tokenizer.json", "{}");
    refuses("tokenizer.json: ");
    scratch.remove("tokenizer.json");
    refuses("has no tokenizer.json");
    scratch.write("tokenizer.model", "");
    refuses("has no tokenizer.json, only tokenizer.model");
    assert_eq!(outs.names(), [""; 0]);
}

#[test]
fn a_converted_folder_whose_section_is_wrong() {
    let scratch = Scratch::new();
    let folder = scratch.root();
    shrink(&["convert", &golden("llama"), "-o", &folder, "--force", "-r", "2", "--no-calibration"]).text();
    let section = scratch.read_json("config.json")["mla"].clone();
    for (field, value, what) in [
        ("version", json!(99), "expected version 1"),
        ("layers", json!([null]), "expected 3 layers"),
        (
            "layers",
            json!([null, null, { "d_latent_k": 0, "d_latent_v": 1 }]),
            "expected latent widths from 1 to d_kv = 32",
        ),
        (
            "layers",
            json!([null, null, { "d_latent_k": 33, "d_latent_v": 1 }]),
            "expected latent widths from 1 to d_kv = 32",
        ),
        ("layers", json!(3), "expected a valid section"),
    ] {
        let mut section = section.clone();
        section[field] = value;
        scratch.set("mla", section);
        refuses_config(&folder, what);
    }
}
