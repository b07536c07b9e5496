//! Generation: a batch is its prompts one by one, a sequence ends where it should, and a full cache refuses.

use std::ops::ControlFlow;

use mla_core::generate::{Finish, GenerateError, GenerateOptions, Generation, Sampling, generate};
use mla_core::{CacheError, Decoder, Padding, Patch, WeightSource};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use crate::conversion::random;
use crate::twin::{Golden, assert_close, host, load, open, twins};

fn greedy(max_new_tokens: usize) -> GenerateOptions {
    GenerateOptions { max_new_tokens, ..GenerateOptions::default() }
}

fn run(decoder: &Decoder, prompts: &[Vec<u32>], options: &GenerateOptions) -> Generation {
    generate(decoder, prompts, options, |_, _| ControlFlow::Continue(())).expect("a continuation")
}

/// Prompts of different lengths that, with eight tokens more, no dynamic scaling acts on.
fn prompts(name: &str) -> Vec<Vec<u32>> {
    let ids = Golden::of(name).ids("prefill.ids");
    [6, 8, 1].map(|n| ids[0][n..2 * n].to_vec()).to_vec()
}

/// The donor and a converted model of every twin.
fn every_decoder(check: impl Fn(&str, &Decoder, &[Vec<u32>])) {
    for name in twins() {
        let model = open(name);
        let factors = random(&model, model.config().d_kv() / 2, 5, 9);
        let prompts = prompts(name);
        check(name, &load(&model), &prompts);
        check(&format!("{name}, latent"), &load(&factors.over(&model)), &prompts);
    }
}

#[test]
fn a_batch_gives_what_each_prompt_gives_alone() {
    every_decoder(|name, decoder, prompts| {
        let batch = run(decoder, prompts, &greedy(8));
        for (row, prompt) in prompts.iter().enumerate() {
            let alone = run(decoder, std::slice::from_ref(prompt), &greedy(8));
            assert_eq!(batch.tokens[row], alone.tokens[0], "{name}, row {row}");
            assert_eq!(alone.tokens[0].len(), 8);
        }
    });
}

#[test]
fn row_zero_of_a_sampled_batch_draws_what_its_prompt_draws_alone() {
    every_decoder(|name, decoder, prompts| {
        let options = |seed| {
            let sampling = Sampling::Random { temperature: 1.2, top_k: Some(50), top_p: 0.95, seed };
            GenerateOptions { sampling, ..greedy(8) }
        };
        let batch = run(decoder, prompts, &options(11));
        let alone = run(decoder, &prompts[..1], &options(11));
        assert_eq!(batch.tokens[0], alone.tokens[0], "{name}");
        assert_eq!(batch.tokens, run(decoder, prompts, &options(11)).tokens, "{name}: the same seed");
        assert_ne!(batch.tokens, run(decoder, prompts, &options(12)).tokens, "{name}: another seed");
    });
}

#[test]
fn chunks_of_the_prompt_change_nothing() {
    every_decoder(|name, decoder, prompts| {
        let whole = run(decoder, prompts, &greedy(8));
        for prefill_chunk in [0, 1, 3, 8] {
            let options = GenerateOptions { prefill_chunk, ..greedy(8) };
            assert_eq!(
                run(decoder, prompts, &options).tokens,
                whole.tokens,
                "{name}, chunks of {prefill_chunk}"
            );
        }
    });
}

#[test]
fn prompts_of_any_lengths_give_what_they_give_alone() {
    let decoder = load(&open("mistral"));
    let lengths = proptest::collection::vec(1_usize..20, 1..5);
    let cases = Config { cases: 24, failure_persistence: None, ..Config::default() };
    let law = |(lengths, seed): (Vec<usize>, u32)| {
        let token =
            |row: usize, place: usize| (seed.wrapping_mul(31) as usize + 7 * row + 13 * place) as u32 % 263;
        let prompts: Vec<Vec<u32>> = lengths
            .iter()
            .enumerate()
            .map(|(row, &n)| (0..n).map(|place| token(row, place)).collect())
            .collect();
        let batch = run(&decoder, &prompts, &greedy(6));
        for (row, prompt) in prompts.iter().enumerate() {
            let alone = run(&decoder, std::slice::from_ref(prompt), &greedy(6));
            prop_assert_eq!(&batch.tokens[row], &alone.tokens[0]);
        }
        Ok(())
    };
    TestRunner::new_with_rng(cases, proptest::test_runner::TestRng::deterministic_rng(Default::default()))
        .run(&(lengths, any::<u32>()), law)
        .expect("the law holds");
}

#[test]
fn a_stop_id_ends_its_sequence_and_is_no_part_of_it() {
    let decoder = load(&open("llama"));
    let prompts = prompts("llama");
    let free = run(&decoder, &prompts, &greedy(8)).tokens;
    let stop = free[1][3];
    assert!(!free[1][..3].contains(&stop), "it comes first at step 3");
    let options = GenerateOptions { stop: vec![stop, 999], ..greedy(8) };
    let mut heard = vec![Vec::new(); prompts.len()];
    let stopped = generate(&decoder, &prompts, &options, |row, token| {
        heard[row].push(token);
        ControlFlow::Continue(())
    })
    .expect("it runs");
    for (row, free) in free.iter().enumerate() {
        let end = free.iter().position(|&token| token == stop).unwrap_or(free.len());
        assert_eq!(stopped.tokens[row], free[..end], "row {row}");
    }
    assert_eq!(heard, stopped.tokens);
    let first = GenerateOptions { stop: vec![free[0][0]], ..greedy(8) };
    assert!(run(&decoder, &prompts[..1], &first).tokens[0].is_empty());
}

#[test]
fn a_caller_that_breaks_off_gets_what_was_made_so_far() {
    let decoder = load(&open("llama"));
    let prompts = prompts("llama");
    let whole = run(&decoder, &prompts, &greedy(8)).tokens;
    let mut heard = 0;
    let broken = generate(&decoder, &prompts, &greedy(8), |_, _| {
        heard += 1;
        if heard == 5 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })
    .expect("it runs");
    // Three rows: the fifth token is the second of row 1.
    assert_eq!(heard, 5, "nothing comes after the break");
    assert_eq!(broken.tokens, [&whole[0][..2], &whole[1][..2], &whole[2][..1]]);
    assert_eq!(broken.finish, [Finish::Broken; 3]);
}

#[test]
fn each_sequence_says_why_it_ended() {
    let decoder = load(&open("llama"));
    let prompts = prompts("llama");
    let free = run(&decoder, &prompts, &greedy(8));
    assert_eq!(free.finish, [Finish::Length; 3]);
    let stop = free.tokens[1][3];
    let stopped = run(&decoder, &prompts, &GenerateOptions { stop: vec![stop], ..greedy(8) });
    for (row, free) in free.tokens.iter().enumerate() {
        let expected = if free.contains(&stop) { Finish::Stop } else { Finish::Length };
        assert_eq!(stopped.finish[row], expected, "row {row}");
    }
    // The context of GPT-2's twin is 48.
    let decoder = load(&open("gpt2"));
    assert_eq!(run(&decoder, &[vec![7; 40]], &greedy(100)).finish, [Finish::Context]);
    assert_eq!(run(&decoder, &[vec![7; 40]], &greedy(8)).finish, [Finish::Length]);
    assert_eq!(run(&decoder, &[vec![7; 40]], &greedy(0)).finish, [Finish::Length]);
}

#[test]
fn a_long_prompt_does_not_end_a_short_one_beside_it() {
    // The contexts of the twins: learned positions, rotary ones, and those that follow the length.
    for twin in ["gpt2", "llama", "llama-dynamic"] {
        let decoder = load(&open(twin));
        let context = decoder.config().max_positions;
        let prompts = [vec![7; context - 4], vec![9, 11, 5]];
        let together = run(&decoder, &prompts, &greedy(context / 2));
        assert_eq!(together.finish, [Finish::Context, Finish::Length], "{twin}");
        assert_eq!(together.tokens.iter().map(Vec::len).collect::<Vec<_>>(), [4, context / 2], "{twin}");
        for (row, prompt) in prompts.iter().enumerate() {
            let alone = run(&decoder, std::slice::from_ref(prompt), &greedy(context / 2));
            assert_eq!(together.tokens[row], alone.tokens[0], "{twin}, row {row}");
        }
    }
}

#[test]
fn a_sequence_ends_where_the_context_does_and_the_cache_is_no_larger() {
    let model = open("gpt2");
    let decoder = load(&model);
    let prompt = vec![7; 40];
    let generation = run(&decoder, std::slice::from_ref(&prompt), &greedy(100));
    assert_eq!(generation.tokens[0].len(), 48 - 40);
    assert_eq!(generation.cache_tokens, 47, "the last token is never fed back");
    assert_eq!(generation.cache_bytes, decoder.cache(Padding::none(1), 47).bytes());
    let nothing = run(&decoder, &[prompt], &greedy(0));
    assert_eq!((nothing.tokens[0].len(), nothing.cache_tokens), (0, 40));
}

#[test]
fn prompts_that_cannot_be_continued_are_named() {
    let decoder = load(&open("gpt2"));
    let error = |prompts: &[Vec<u32>]| {
        generate(&decoder, prompts, &greedy(1), |_, _| ControlFlow::Continue(())).expect_err("refused")
    };
    assert_eq!(error(&[vec![1], vec![]]), GenerateError::EmptyPrompt { row: 1 });
    let unknown = GenerateError::UnknownToken { row: 1, token: 264, vocab_size: 264 };
    assert_eq!(error(&[vec![263], vec![0, 264]]), unknown);
    for prompt_tokens in [48, 49, 1000] {
        let long = GenerateError::PromptTooLong { prompt_tokens, max_positions: 48 };
        assert_eq!(error(&[vec![1], vec![1; prompt_tokens]]), long);
    }
    assert!(generate(&decoder, &[vec![1; 47]], &greedy(1), |_, _| ControlFlow::Continue(())).is_ok());
}

#[test]
fn no_prompts_give_no_sequences() {
    let decoder = load(&open("llama"));
    assert!(run(&decoder, &[], &greedy(4)).tokens.is_empty());
}

#[test]
fn a_pass_that_does_not_fit_leaves_the_cache_as_it_was() {
    every_decoder(|name, decoder, prompts| {
        let prompt = prompts[1].clone();
        let expected = host(decoder.hidden(&[[prompt.clone(), vec![5, 6]].concat()], &Padding::none(1)));
        let mut cache = decoder.cache(Padding::none(1), prompt.len() + 2);
        let start = host(decoder.hidden_cached(std::slice::from_ref(&prompt), &mut cache).expect("it fits"));
        let bytes = cache.bytes();
        let (capacity, used) = (prompt.len() + 2, prompt.len());
        let refused = decoder.hidden_cached(&[vec![9, 9, 9]], &mut cache).expect_err("three in two places");
        assert_eq!(refused, CacheError::Overflow { capacity, used, wanted: 3 }, "{name}");
        let refused = decoder.hidden_cached(&[vec![9], vec![9]], &mut cache).expect_err("two sequences");
        assert_eq!(refused, CacheError::Batch { expected: 1, found: 2 }, "{name}");
        assert_eq!((cache.tokens(), cache.bytes(), cache.capacity()), (used, bytes, capacity), "{name}");
        let end = host(decoder.hidden_cached(&[vec![5, 6]], &mut cache).expect("two in two places"));
        assert_close(&[start, end].concat(), &expected, 1e-4, name);
        let full = decoder.hidden_cached(&[vec![1]], &mut cache).expect_err("it is full");
        assert_eq!(full, CacheError::Overflow { capacity, used: capacity, wanted: 1 }, "{name}");
    });
}

#[test]
fn logits_that_are_no_numbers_are_an_error_and_not_a_token() {
    let model = open("llama");
    let mut patch = mla_core::WeightMap::new(model.config().clone());
    let width = model.config().d_model;
    patch.insert(
        mla_core::Slot::FinalNorm(mla_core::Part::Weight),
        mla_core::Matrix::new(1, width, vec![f32::NAN; width]),
    );
    let decoder = load(&patch.over(&model));
    let error = generate(&decoder, &prompts("llama"), &greedy(4), |_, _| ControlFlow::Continue(()))
        .expect_err("no token");
    assert_eq!(error, GenerateError::NotFinite { row: 0, token: 0 });
}
