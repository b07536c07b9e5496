//! `shrink generate`: the reference's continuation, whatever the batch, and the user's settings.

use serde_json::{Value, json};

use crate::folder::{Scratch, TWINS, golden};
use crate::golden::{Golden, ids};
use crate::program::{number, shrink, shrink_reading};

fn generate(model: &str, prompts: &[&str], more: &[&str]) -> Value {
    let prompts = prompts.iter().flat_map(|prompt| ["--prompt", prompt]);
    let args: Vec<&str> = ["generate", model, "--json", "--quiet"].into_iter().chain(prompts).collect();
    shrink(&[&args[..], more].concat()).json()
}

/// A golden at half its cache.
fn converted(name: &str) -> Scratch {
    let scratch = Scratch::new();
    let folder = scratch.root();
    shrink(&["convert", &golden(name), "-o", &folder, "-r", "2", "--no-calibration", "--force", "--quiet"])
        .text();
    scratch
}

#[test]
fn the_greedy_continuation_is_the_references() {
    let golden_run = Golden::read();
    let found = generate(&golden("demo"), &[golden_run.prompt()], &["--max-new-tokens", "32"]);
    assert_eq!(ids(&found["tokens"]), golden_run.continuation_ids());
    assert_eq!(found["completion"], golden_run.continuation());
    assert_eq!(found["prompt"], golden_run.prompt());
    assert_eq!(found["finish_reason"], "length");
}

#[test]
fn stdout_is_the_prompt_and_its_continuation() {
    let golden_run = Golden::read();
    let run = shrink(&["generate", &golden("demo"), "-p", golden_run.prompt(), "--max-new-tokens", "32"]);
    let last = run.stderr.lines().last().unwrap_or_default();
    assert!(last.starts_with("32 tokens, ") && last.contains(" a second, cache "), "{last}");
    assert_eq!(run.text(), format!("{}{}\n", golden_run.prompt(), golden_run.continuation()));
}

#[test]
fn a_batch_gives_what_each_prompt_gives_alone_in_every_family() {
    let prompts = ["The captain of the ship", "I", "Once upon a time, there was"];
    for name in TWINS {
        let half = converted(name);
        for model in [golden(name), half.root()] {
            let batch = generate(&model, &prompts, &["--max-new-tokens", "8"]);
            let batch = batch["completions"].as_array().expect("a list");
            assert_eq!(batch.len(), prompts.len());
            for (prompt, together) in prompts.iter().zip(batch) {
                let alone = generate(&model, &[prompt], &["--max-new-tokens", "8"]);
                for field in ["prompt", "completion", "tokens"] {
                    assert_eq!(alone[field], together[field], "{model}: {prompt:?}");
                }
            }
        }
    }
}

#[test]
fn a_batch_of_the_bundled_model_prints_a_line_a_prompt() {
    let prompts = ["The sea was", "My dear Anne", "We must"];
    let model = golden("demo");
    let batch =
        ["generate", &model, "--max-new-tokens", "4", "-p", prompts[0], "-p", prompts[1], "-p", prompts[2]];
    let alone = |prompt| shrink(&["generate", &model, "--max-new-tokens", "4", "-p", prompt]).text();
    assert_eq!(shrink(&batch).text(), prompts.map(alone).concat());
}

#[test]
fn the_latent_cache_is_smaller_by_its_ratio() {
    for name in TWINS {
        let scratch = converted(name);
        let prompt = "x".repeat(8);
        let whole = generate(&golden(name), &[&prompt], &["--max-new-tokens", "20"]);
        let ours = generate(&scratch.root(), &[&prompt], &["--max-new-tokens", "20"]);
        // 8 tokens of prompt and 20 new ones, the last of which is not fed back.
        assert_eq!((&whole["cache_tokens"], &ours["cache_tokens"]), (&json!(27), &json!(27)), "{name}");
        assert_eq!(number(&whole, "cache_bytes"), 2.0 * number(&ours, "cache_bytes"), "{name}");
    }
}

#[test]
fn a_seed_fixes_every_draw_and_another_draws_otherwise() {
    let draw = |seed: &str| {
        let options = ["--temperature", "1", "--max-new-tokens", "24", "--seed", seed];
        generate(&golden("demo"), &["The ship"], &options)["completion"].clone()
    };
    assert_eq!(draw("7"), draw("7"));
    assert_ne!(draw("7"), draw("8"));
}

#[test]
fn settings_of_sampling_want_a_temperature() {
    let model = golden("demo");
    for setting in [["--top-p", "0.9"], ["--top-k", "5"], ["--seed", "3"]] {
        for temperature in [&[][..], &["--temperature", "0"]] {
            let args = [&["generate", &model, "-p", "x"], &setting[..], temperature].concat();
            shrink(&args)
                .refused(&format!("{} is {}, expected a --temperature above 0", setting[0], setting[1]));
        }
    }
}

#[test]
fn one_candidate_leaves_no_choice() {
    let greedy = generate(&golden("demo"), &["The ship"], &["--max-new-tokens", "12"])["tokens"].clone();
    for only in [["--top-k", "1"], ["--top-p", "0.000001"]] {
        let options = [&only[..], &["--temperature", "2", "--seed", "3", "--max-new-tokens", "12"]].concat();
        assert_eq!(generate(&golden("demo"), &["The ship"], &options)["tokens"], greedy, "{only:?}");
    }
}

#[test]
fn a_dash_reads_the_prompt_from_stdin() {
    let model = golden("demo");
    let args = ["generate", &model, "--prompt", "-", "--max-new-tokens", "6"];
    let expected = shrink(&["generate", &model, "--prompt", "The ship", "--max-new-tokens", "6"]).text();
    assert_eq!(shrink_reading(&args, b"The ship\n").text(), expected);
}

#[test]
fn the_end_of_a_text_ends_it_and_is_no_part_of_it() {
    let golden_run = Golden::read();
    let whole = golden_run.continuation_ids();
    // The first token that did not occur before it, past the start: where it comes, the text must end.
    let end = (4..whole.len()).find(|&i| !whole[..i].contains(&whole[i])).expect("a token of its own");
    for eos in [json!(whole[end]), json!([1, whole[end]])] {
        let scratch = Scratch::of("demo");
        scratch.write("generation_config.json", json!({ "eos_token_id": eos }).to_string());
        let found = generate(&scratch.root(), &[golden_run.prompt()], &["--max-new-tokens", "32"]);
        assert_eq!(ids(&found["tokens"]), whole[..end], "{eos}");
        assert_eq!(found["finish_reason"], "stop");
        // The converted folder ends there as well: the file was copied.
        let out = Scratch::new();
        let args = ["convert", &scratch.root(), "-o", &out.root(), "--force", "-r", "1", "--no-calibration"];
        shrink(&args).text();
        let found = generate(&out.root(), &[golden_run.prompt()], &["--max-new-tokens", "32"]);
        assert_eq!(ids(&found["tokens"]), whole[..end], "{eos}, converted at ratio 1");
    }
}

#[test]
fn the_context_ends_a_text_that_would_outgrow_it() {
    let prompt = "x".repeat(60);
    let found = generate(&golden("llama"), &[&prompt], &["--max-new-tokens", "100"]);
    assert_eq!((ids(&found["tokens"]).len(), &found["cache_tokens"]), (4, &json!(63)));
    assert_eq!(found["finish_reason"], "context");
}

#[test]
fn no_new_token_is_the_prompt_alone() {
    let text = shrink(&["generate", &golden("demo"), "-p", "The ship", "--max-new-tokens", "0"]).text();
    assert_eq!(text, "The ship\n");
    let found = generate(&golden("demo"), &["The ship"], &["--max-new-tokens", "0"]);
    assert_eq!((&found["completion"], &found["tokens"]), (&json!(""), &json!([])));
}

#[test]
fn the_space_between_a_prompt_and_its_continuation_is_kept() {
    // The bundled model with the decoder of LLaMA 2, which drops the first space of what it decodes.
    let scratch = Scratch::of("demo");
    let mut tokenizer = scratch.read_json("tokenizer.json");
    let whole = tokenizer["decoder"].clone();
    let strip = json!({ "type": "Strip", "content": " ", "start": 1, "stop": 0 });
    tokenizer["decoder"] = json!({ "type": "Sequence", "decoders": [whole, strip] });
    scratch.write("tokenizer.json", tokenizer.to_string());
    for prompt in ["The captain of", "He looked at the", "We must"] {
        let more = ["--max-new-tokens", "12"];
        let expected = generate(&golden("demo"), &[prompt], &more)["completion"].clone();
        let completion = expected.as_str().expect("a text");
        assert!(completion.starts_with(' '), "{prompt:?}{completion:?}");
        assert_eq!(generate(&scratch.root(), &[prompt], &more)["completion"], expected);
        let text = shrink(&["generate", &scratch.root(), "-p", prompt, "--max-new-tokens", "12"]).text();
        assert_eq!(text, format!("{prompt}{completion}\n"));
    }
}

#[test]
fn a_prompt_begins_as_in_transformers_5_and_a_note_says_where_4_differs() {
    // DeepSeek's tokenizer_config.json: transformers 4 puts the token that it names before a prompt, 5 does not.
    let scratch = Scratch::of("llama");
    let settings = json!({
        "add_bos_token": true,
        "add_eos_token": false,
        "bos_token": { "__type": "AddedToken", "content": "<|endoftext|>", "lstrip": false, "normalized": true,
            "rstrip": false, "single_word": false },
        "legacy": true,
        "tokenizer_class": "LlamaTokenizerFast",
    });
    scratch.write("tokenizer_config.json", settings.to_string());
    let run = |model: &str| shrink(&["generate", model, "-p", "Who are you?", "--max-new-tokens", "4"]);
    let (found, plain) = (run(&scratch.root()), run(&golden("llama")));
    let note = "note: prompts get no token put to them, as in transformers 5";
    let says = |line: &str| line.starts_with(note) && line.ends_with("transformers 4 puts <|endoftext|>");
    assert!(found.stderr.lines().any(says), "{found:#?}");
    assert!(!plain.stderr.contains("transformers"), "{plain:#?}");
    assert_eq!(found.text(), plain.text());
}

#[test]
fn characters_of_several_tokens_are_printed_whole() {
    // Random weights over bytes: most continuations break characters apart; what is printed must be what JSON holds.
    for seed in ["1", "2", "3"] {
        let options = ["--temperature", "1", "--max-new-tokens", "16", "--seed", seed];
        let found = generate(&golden("llama"), &["naïve 日本"], &options);
        let model = golden("llama");
        let args = [&["generate", &model, "-p", "naïve 日本"], &options[..]].concat();
        let expected = format!("naïve 日本{}\n", found["completion"].as_str().expect("a text"));
        assert_eq!(shrink(&args).text(), expected, "seed {seed}");
    }
}

#[test]
fn logits_that_are_no_numbers_choose_nothing() {
    let scratch = Scratch::of("llama");
    scratch.edit(|tensors| tensors.get_mut("lm_head.weight").expect("a head").scale(1e38));
    for more in [&[][..], &["--temperature", "1"], &["--json"]] {
        let folder = scratch.root();
        let args = [&["generate", &folder, "-p", "The ship"], more].concat();
        let hint = shrink(&args).refused("the model gives no number for new token 0 of prompt 0");
        assert!(hint.contains("overflow"), "{hint}");
    }
}
