//! The decoder against transformers, twin by twin.
//!
//! The reference computes in f32 as we do; logits of the twins are a few units large, so that 2e-4 is a few hundred
//! roundings, and a mistake (`sensitivity.rs`) is at least fifty times larger.

use std::cell::Cell;
use std::ops::ControlFlow;

use burn::tensor::Device;
use handlers::{Model, Registry};
use mla_core::decoder::frame;
use mla_core::generate::{GenerateOptions, generate};
use mla_core::{Attention, Decoder, Memory, Padding, Slot, WeightSource};
use serde_json::Value;

use crate::twin::{
    FOLLOWING, Golden, argmax, assert_close, cached_logits, folder, host, left_padded, load, logits, open,
    token_by_token, twins,
};

const REFERENCE: f32 = 2e-4;
/// Between two orders of our own sums.
const OURSELVES: f32 = 1e-4;

/// Runs a check on every twin.
fn every_twin(check: impl Fn(&str, &Model, &Decoder, &Golden)) {
    for name in twins() {
        let model = open(name);
        check(name, &model, &load(&model), &Golden::of(name));
    }
}

/// Those whose goldens have cached decoding and padding.
fn every_twin_that_decodes(check: impl Fn(&str, &Decoder, &Golden)) {
    every_twin(|name, _, decoder, golden| {
        assert_eq!(golden.has("decode.ids"), !FOLLOWING.contains(&name), "{name}");
        if golden.has("decode.ids") {
            check(name, decoder, golden);
        }
    });
}

#[test]
fn prefill_logits_equal_those_of_transformers() {
    every_twin(|name, model, decoder, golden| {
        // Of a model that sees, the half that reads is used.
        let used =
            |key: &&String| !["vision_tower.", "multi_modal_projector."].iter().any(|m| key.starts_with(m));
        assert_eq!(model.unused().iter().filter(used).count(), 0, "{name}: {:?}", model.unused());
        assert_eq!(model.unused().is_empty(), name != "gemma3-nested", "{name}");
        let ids = &golden.ids("prefill.ids")[0];
        assert_close(&logits(decoder, ids), &golden.floats("prefill.logits"), REFERENCE, name);
    });
}

#[test]
fn frequencies_that_follow_the_length_are_those_of_training_for_a_prompt_that_fits() {
    for name in FOLLOWING {
        let (decoder, golden) = (load(&open(name)), Golden::of(name));
        let ids = &golden.ids("short.ids")[0];
        assert_close(&logits(&decoder, ids), &golden.floats("short.logits"), REFERENCE, name);
    }
}

#[test]
fn cached_greedy_decoding_equals_that_of_transformers() {
    every_twin_that_decodes(|name, decoder, golden| {
        let (prompt, expected) = (&golden.ids("prefill.ids"), &golden.ids("decode.ids")[0]);
        let vocab = decoder.config().vocab_size;
        let mut cache = decoder.cache(Padding::none(1), prompt[0].len() + expected.len());
        let hidden = decoder.hidden_cached(prompt, &mut cache).expect("it fits");
        let mut last = host(decoder.logits(hidden.narrow(1, prompt[0].len() - 1, 1)));
        let mut all = last.clone();
        let mut chosen = vec![argmax(&last)];
        while chosen.len() < expected.len() {
            let step = vec![chosen[chosen.len() - 1..].to_vec()];
            last = host(decoder.logits(decoder.hidden_cached(&step, &mut cache).expect("it fits")));
            chosen.push(argmax(&last));
            all.extend_from_slice(&last);
        }
        assert_eq!(&chosen, expected, "{name}");
        assert_eq!(all.len(), expected.len() * vocab);
        assert_close(&all, &golden.floats("decode.logits"), REFERENCE, name);
    });
}

#[test]
fn a_left_padded_batch_equals_transformers_and_each_row_alone() {
    every_twin_that_decodes(|name, decoder, golden| {
        let (batch, mask) = (golden.ids("padded.ids"), golden.ids("padded.mask"));
        let (columns, vocab) = (batch[0].len(), decoder.config().vocab_size);
        let left: Vec<usize> = mask.iter().map(|row| row.iter().filter(|&&seen| seen == 0).count()).collect();
        assert!(left.iter().any(|&left| left > 0), "{name}: something is padded");
        let expected = golden.floats("padded.logits");
        let whole = host(decoder.forward(&batch, &Padding::left(left.clone())));
        let cached = cached_logits(decoder, &batch, Padding::left(left.clone()), &token_by_token(columns, 6));
        for (row, &left) in left.iter().enumerate() {
            let real = left * vocab..columns * vocab;
            let place = row * columns * vocab;
            let ours = &whole[place..][real.clone()];
            assert_close(ours, &expected[place..][real.clone()], REFERENCE, &format!("{name}, row {row}"));
            let alone = logits(decoder, &batch[row][left..]);
            assert_close(ours, &alone, OURSELVES, &format!("{name}, row {row} alone"));
            assert_close(
                &cached[row][real],
                &alone,
                OURSELVES,
                &format!("{name}, row {row} through the cache"),
            );
        }
    });
}

/// Its frequencies follow the length of a sequence, which is not the width of the batch it stands in.
#[test]
fn dynamic_rope_stretches_each_row_of_a_batch_as_if_it_were_alone() {
    let (decoder, golden) = (load(&open("llama-dynamic")), Golden::of("llama-dynamic"));
    let ids = &golden.ids("prefill.ids")[0];
    let prompts: Vec<Vec<u32>> = [24, 19, 7].map(|n| ids[..n].to_vec()).to_vec();
    let (batch, padding) = left_padded(&prompts, 0);
    let vocab = decoder.config().vocab_size;
    let whole = host(decoder.forward(&batch, &padding));
    let cached = cached_logits(&decoder, &batch, padding.clone(), &token_by_token(24, 20));
    for (row, prompt) in prompts.iter().enumerate() {
        let alone = logits(&decoder, prompt);
        let real = padding.columns()[row] * vocab..24 * vocab;
        assert_close(&whole[row * 24 * vocab..][real.clone()], &alone, OURSELVES, &format!("row {row}"));
        assert_close(&cached[row][real], &alone, OURSELVES, &format!("row {row} through the cache"));
    }
    let options = GenerateOptions { max_new_tokens: 8, ..GenerateOptions::default() };
    let run = |prompts: &[Vec<u32>]| {
        generate(&decoder, prompts, &options, |_, _| ControlFlow::Continue(())).expect("it runs").tokens
    };
    let together = run(&prompts);
    for (row, prompt) in prompts.iter().enumerate() {
        assert_eq!(together[row], run(std::slice::from_ref(prompt))[0], "row {row}");
    }
}

#[test]
fn what_stands_on_the_right_changes_nothing_before_it() {
    every_twin(|name, _, decoder, golden| {
        let (ids, vocab) = (&golden.ids("prefill.ids")[0], decoder.config().vocab_size);
        // A batch as long as dynamic RoPE lets stand without stretching.
        let columns = 16;
        let lengths = [16, 11, 3];
        let batch: Vec<Vec<u32>> =
            lengths.iter().map(|&n| [ids[..n].to_vec(), vec![1; columns - n]].concat()).collect();
        let whole = host(decoder.forward(&batch, &Padding::none(batch.len())));
        for (row, &n) in lengths.iter().enumerate() {
            let ours = &whole[row * columns * vocab..][..n * vocab];
            assert_close(ours, &logits(decoder, &ids[..n]), OURSELVES, &format!("{name}, {n} tokens"));
        }
    });
}

#[test]
fn cached_passes_of_any_width_equal_the_whole_pass() {
    every_twin(|name, _, decoder, golden| {
        let ids = golden.ids("prefill.ids");
        let whole = logits(decoder, &ids[0]);
        let columns = ids[0].len();
        let fives = vec![5, 5, 5, 5, 4];
        for passes in [vec![columns], fives, token_by_token(columns, 1), token_by_token(columns, 7)] {
            let cached = cached_logits(decoder, &ids, Padding::none(1), &passes);
            assert_close(&cached[0], &whole, OURSELVES, &format!("{name}, passes {passes:?}"));
        }
    });
}

/// The peer calibrated on the residual stream before the norm.
#[test]
fn attention_input_is_what_k_proj_receives() {
    every_twin(|name, model, decoder, golden| {
        let ids = golden.ids("prefill.ids");
        let device = Device::default();
        let frame = frame(decoder.config(), &Padding::none(1), ids[0].len(), &device);
        let mut x = Decoder::embed_from(model, &ids, &device).expect("the embeddings load");
        let mut memory = Memory::of_pass(decoder.config());
        let mut compared = 0;
        for (layer, block) in decoder.blocks.iter().enumerate() {
            let h = block.attention_input(x.clone());
            let key = format!("k_in.{layer}");
            if golden.has(&key) {
                assert_close(&host(h.clone()), &golden.floats(&key), REFERENCE, &format!("{name}, {key}"));
                compared += 1;
            }
            x = block.forward_from(x, h, &frame, layer, &mut memory);
        }
        assert_eq!(compared, 2, "{name}: the first and the last layer");
        let ours = host(decoder.logits(decoder.final_norm.forward(x)));
        assert_eq!(ours, logits(decoder, &ids[0]), "{name}: block by block is the whole pass");
    });
}

/// What a latent is fitted to where keys are normed: a key with its norm, before it is rotated.
#[test]
fn a_normed_key_is_what_k_norm_gives() {
    let compared = Cell::new(0);
    every_twin(|name, model, decoder, golden| {
        let ids = golden.ids("prefill.ids");
        let device = Device::default();
        let frame = frame(decoder.config(), &Padding::none(1), ids[0].len(), &device);
        let mut x = Decoder::embed_from(model, &ids, &device).expect("the embeddings load");
        for (layer, block) in decoder.blocks.iter().enumerate() {
            let key = format!("k_norm.{layer}");
            if golden.has(&key) {
                let Attention::Grouped(attention) = &block.attention else { panic!("{name} is a donor") };
                let ours = attention.keys.project(block.attention_input(x.clone()));
                assert_close(&host(ours), &golden.floats(&key), REFERENCE, &format!("{name}, {key}"));
                compared.set(compared.get() + 1);
            }
            x = block.forward(x, &frame, layer, &mut Memory::of_pass(decoder.config()));
        }
    });
    assert!(compared.get() >= 10, "{} keys were compared", compared.get());
}

#[test]
fn rows_of_a_table_are_read_without_the_table() {
    every_twin(|name, model, _, golden| {
        let device = Device::default();
        let ids = golden.ids("prefill.ids");
        let table = host(model.matrix(Slot::TokenEmbedding, &device).expect("a table"));
        let rows = host(model.rows(Slot::TokenEmbedding, &ids[0], &device).expect("some rows"));
        let d = model.config().d_model;
        let expected: Vec<f32> =
            ids[0].iter().flat_map(|&id| table[id as usize * d..][..d].to_vec()).collect();
        assert_eq!(rows, expected, "{name}");
        let beyond = model.config().vocab_size as u32;
        assert!(model.rows(Slot::TokenEmbedding, &[0, beyond], &device).is_err(), "{name}");
    });
}

#[test]
fn the_demo_model_continues_its_prompt_as_transformers_does() {
    let folder = folder("demo");
    let golden = std::fs::read(folder.join("golden.json")).expect("goldens/demo/golden.json");
    let golden: Value = serde_json::from_slice(&golden).expect("JSON");
    let ids = |field: &str| -> Vec<u32> {
        serde_json::from_value(golden["greedy"][field].clone())
            .unwrap_or_else(|e| panic!("greedy.{field}: {e}"))
    };
    let model = Model::open(&folder, &Registry::builtin()).expect("the demo model");
    let decoder = load(&model);
    let expected = ids("ids");
    let options = GenerateOptions { max_new_tokens: expected.len(), ..GenerateOptions::default() };
    let ours = generate(&decoder, &[ids("prompt_ids")], &options, |_, _| ControlFlow::Continue(()))
        .expect("a continuation");
    assert_eq!(ours.tokens[0], expected);
}
