//! Whether a model goes on as its donor does: greedy continuations of the same prompts side by side.

use mla_core::Decoder;

use super::super::score::EvalError;
use super::continuation::{continuations, share};

/// How alike two models go on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Agreement {
    /// Prompts that were continued.
    pub prompts: usize,
    /// Tokens from the start that both have in common, the mean.
    pub common_tokens: f64,
    /// The share of places at which both have the same token.
    pub equal_tokens: f64,
    /// The share of continuations that are the same as a whole.
    pub equal_wholes: f64,
}

/// Prompts of `length` tokens behind `opening`, cut from a text at places spread evenly over it; fewer than `count` where the
/// text has no more.
///
/// # Errors
/// When the text has not one, or the opening is as long as a prompt.
pub fn excerpts(
    text: &[u32],
    opening: &[u32],
    length: usize,
    count: usize,
) -> Result<Vec<Vec<u32>>, EvalError> {
    let taken = length.saturating_sub(opening.len());
    if taken == 0 {
        return Err(EvalError::TaskRoom { length, least: opening.len() + 1 });
    }
    let all: Vec<&[u32]> = text.chunks_exact(taken).collect();
    if all.is_empty() {
        return Err(EvalError::TaskText { tokens: text.len(), needed: taken });
    }
    let count = count.min(all.len());
    Ok((0..count).map(|i| [opening, all[i * all.len() / count]].concat()).collect())
}

/// Continues prompts by `new_tokens` tokens with a model and its donor. `on_done` hears how many continuations are done, of both.
///
/// # Errors
/// When the vocabularies differ, a prompt and its continuation exceed a context, a token is unknown, or logits are no numbers.
pub fn agreement(
    model: &Decoder,
    donor: &Decoder,
    prompts: &[Vec<u32>],
    new_tokens: usize,
    on_done: &mut dyn FnMut(usize),
) -> Result<Agreement, EvalError> {
    let (left, right) = (model.config().vocab_size, donor.config().vocab_size);
    if left != right {
        return Err(EvalError::Vocabulary { left, right });
    }
    let length = prompts.iter().map(Vec::len).max().unwrap_or(0) + new_tokens;
    let max_positions = model.config().max_positions.min(donor.config().max_positions);
    if length > max_positions {
        return Err(EvalError::TaskLength { length, max_positions });
    }
    let theirs = continuations(donor, prompts, new_tokens, on_done)?;
    let ours = continuations(model, prompts, new_tokens, &mut |done| on_done(prompts.len() + done))?;
    Ok(compare(&ours, &theirs))
}

fn compare(ours: &[Vec<u32>], theirs: &[Vec<u32>]) -> Agreement {
    let pairs = || ours.iter().zip(theirs);
    let common = |(a, b): (&Vec<u32>, &Vec<u32>)| a.iter().zip(b).take_while(|(a, b)| a == b).count();
    let common: usize = pairs().map(common).sum();
    let prompts = ours.len();
    Agreement {
        prompts,
        common_tokens: common as f64 / f64::max(prompts as f64, 1.0),
        equal_tokens: share(pairs().flat_map(|(a, b)| a.iter().zip(b).map(|(a, b)| a == b))),
        equal_wholes: share(pairs().map(|(a, b)| a == b)),
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::toy::{CONTEXT, Kept, text, toy};
    use super::*;

    #[test]
    fn a_model_agrees_with_itself_and_not_with_another() {
        let (model, other) = (toy(Kept::Dense, 5), toy(Kept::Dense, 6));
        let prompts = excerpts(&text(600, 1), &[0], 30, 5).expect("the text is long enough");
        let mut heard = 0;
        let with_itself = agreement(&model, &model, &prompts, 8, &mut |done| heard = done);
        let all = Agreement { prompts: 5, common_tokens: 8.0, equal_tokens: 1.0, equal_wholes: 1.0 };
        assert_eq!((with_itself, heard), (Ok(all), 10));
        let with_another = agreement(&model, &other, &prompts, 8, &mut |_| {}).expect("it is measured");
        assert!(with_another.equal_tokens < 0.5 && with_another.equal_wholes == 0.0, "{with_another:?}");
        let refused = agreement(&model, &other, &prompts, CONTEXT, &mut |_| {});
        assert_eq!(refused, Err(EvalError::TaskLength { length: 30 + CONTEXT, max_positions: CONTEXT }));
    }

    #[test]
    fn what_is_common_ends_at_the_first_difference() {
        let found = compare(
            &[vec![1, 2, 3, 4], vec![1, 2, 3, 4], vec![9, 2, 3, 4]],
            &[vec![1, 2, 3, 4], vec![1, 2, 9, 4], vec![1, 2, 3, 4]],
        );
        assert_eq!(
            (found.common_tokens, found.equal_tokens, found.equal_wholes),
            (2.0, 10.0 / 12.0, 1.0 / 3.0)
        );
    }

    #[test]
    fn excerpts_are_spread_over_the_text_and_begin_with_the_opening() {
        let text: Vec<u32> = (0..103).collect();
        let found = excerpts(&text, &[900], 11, 3).expect("there is text");
        assert_eq!(
            found.iter().map(|prompt| (prompt[0], prompt[1], prompt.len())).collect::<Vec<_>>(),
            [(900, 0, 11), (900, 30, 11), (900, 60, 11)]
        );
        assert_eq!(excerpts(&text, &[], 50, 9).expect("there is text").len(), 2);
        assert_eq!(excerpts(&text, &[], 104, 9), Err(EvalError::TaskText { tokens: 103, needed: 104 }));
        assert_eq!(excerpts(&text, &[900], 1, 9), Err(EvalError::TaskRoom { length: 1, least: 2 }));
    }
}
