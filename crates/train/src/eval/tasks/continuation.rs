//! Greedy continuations of many prompts, a few at a time.

use std::ops::ControlFlow;

use mla_core::Decoder;
use mla_core::generate::{GenerateOptions, generate};

use super::super::score::EvalError;

/// Tokens of all prompts that are continued at a time, but one prompt at least: enough that a step's weights serve several.
const AT_ONCE_TOKENS: usize = 8192;
/// Prompts that are continued at a time at most.
const AT_ONCE: usize = 16;

/// Prompts of so many tokens, continuation included, that are continued at a time.
pub fn sequences_at_once(length: usize) -> usize {
    (AT_ONCE_TOKENS / length.max(1)).clamp(1, AT_ONCE)
}

/// The most likely `new_tokens` tokens after each prompt, or fewer where the context ends; no token ends one before.
/// `on_done` hears how many prompts are done.
///
/// # Errors
/// When a prompt is empty, longer than the context or has an unknown token, or logits are no numbers.
pub(super) fn continuations(
    decoder: &Decoder,
    prompts: &[Vec<u32>],
    new_tokens: usize,
    on_done: &mut dyn FnMut(usize),
) -> Result<Vec<Vec<u32>>, EvalError> {
    let options = GenerateOptions { max_new_tokens: new_tokens, ..GenerateOptions::default() };
    let mut all = Vec::with_capacity(prompts.len());
    while let Some(first) = prompts.get(all.len()) {
        let rest = &prompts[all.len()..];
        // Prompts come in groups of a length; the next group waits, so that none of them is padded far.
        let alike = rest.iter().take_while(|prompt| prompt.len().abs_diff(first.len()) <= first.len() / 8);
        let count = alike.count().min(sequences_at_once(first.len() + new_tokens));
        let given = generate(decoder, &rest[..count], &options, |_, _| ControlFlow::Continue(()))?;
        all.extend(given.tokens);
        on_done(all.len());
    }
    Ok(all)
}

/// The mean of a share; 0 of none.
pub(super) fn share(hits: impl IntoIterator<Item = bool>) -> f64 {
    let (mut all, mut hit) = (0, 0);
    for is_hit in hits {
        all += 1;
        hit += usize::from(is_hit);
    }
    hit as f64 / f64::max(all as f64, 1.0)
}

#[cfg(test)]
mod tests {
    use super::super::super::toy::{CONTEXT, Kept, text, toy};
    use super::*;

    #[test]
    fn prompts_of_any_lengths_are_continued_as_each_alone_would_be() {
        let decoder = toy(Kept::Dense, 5);
        let prompts: Vec<Vec<u32>> = [40, 41, 40, 7, CONTEXT - 2]
            .into_iter()
            .zip(0..)
            .map(|(tokens, seed)| text(tokens, seed))
            .collect();
        let mut heard = Vec::new();
        let together = continuations(&decoder, &prompts, 6, &mut |done| heard.push(done)).expect("they fit");
        for (prompt, found) in prompts.iter().zip(&together) {
            let alone = continuations(&decoder, std::slice::from_ref(prompt), 6, &mut |_| {});
            assert_eq!(alone.expect("it fits"), std::slice::from_ref(found));
        }
        assert_eq!(together.iter().map(Vec::len).collect::<Vec<_>>(), [6, 6, 6, 6, 2]);
        assert_eq!(heard, [3, 4, 5]);
        let long = [text(CONTEXT, 0)];
        let refused = continuations(&decoder, &long, 6, &mut |_| {}).expect_err("no room for a token");
        assert!(refused.to_string().contains("no room for another"), "{refused}");
    }

    #[test]
    fn as_many_prompts_go_at_once_as_their_length_lets() {
        let found = [1, 512, 4096, 8192, 100_000].map(sequences_at_once);
        assert_eq!(found, [AT_ONCE, 16, 2, 1, 1]);
    }
}
