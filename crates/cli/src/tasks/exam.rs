//! What every task needs: the models, their tokenizer, text, and the options that belong to the task.

use handlers::Tokenizer;
use mla_core::{Decoder, WeightSource};
use serde_json::{Value, json};
use train::eval::tasks::numbers;

use crate::args::{EvalArgs, Task};
use crate::calibration::builtin;
use crate::corpus::{Documents, Source};
use crate::error::UserError;
use crate::footprint::Footprint;
use crate::session::{Opened, Session};

/// The least and the most tokens of context that are tried without being asked for.
const DEFAULT_LENGTHS: (usize, usize) = (512, 8192);

/// A task about to be given.
pub struct Exam<'a> {
    /// Where to compute and to print.
    pub session: &'a Session,
    /// What was asked for.
    pub args: &'a EvalArgs,
    /// The tokenizer of both models.
    pub tokenizer: Tokenizer,
    task: Task,
    opened: Opened,
    donor: Option<Opened>,
}

/// The models of a task, loaded.
pub struct Examined {
    /// The model.
    pub model: Decoder,
    /// Its donor, where it is compared with one.
    pub donor: Option<Decoder>,
}

impl<'a> Exam<'a> {
    /// Checks the options and opens the models.
    ///
    /// # Errors
    /// When an option belongs to another task or is missing, or a model cannot be had.
    pub fn open(session: &'a Session, args: &'a EvalArgs, task: Task) -> anyhow::Result<Self> {
        check_options(args, task)?;
        args.against.as_deref().map(|name| session.describe(name)).transpose()?;
        let opened = session.open_to_run(&args.model, args.cache)?;
        let tokenizer = session.tokenizer(&opened.model)?;
        let donor = args.against.as_deref().map(|name| session.open(name)).transpose()?;
        donor.as_ref().map_or(Ok(()), |donor| session.check_own_cache(donor.model.config()))?;
        if let Some(donor) = &donor {
            let [left, right] = [&opened, donor].map(|opened| opened.model.config().vocab_size);
            if left != right {
                return Err(train::eval::EvalError::Vocabulary { left, right }.into());
            }
        }
        Ok(Self { session, args, tokenizer, task, opened, donor })
    }

    /// The context of both models.
    pub fn context(&self) -> usize {
        let contexts = [Some(&self.opened), self.donor.as_ref()].into_iter().flatten();
        contexts.map(|opened| opened.model.config().max_positions).min().unwrap_or(usize::MAX)
    }

    /// The lengths that were asked for, or those of a doubling series up to the context.
    ///
    /// # Errors
    /// When one exceeds the context.
    pub fn lengths(&self) -> anyhow::Result<Vec<usize>> {
        let max_positions = self.context();
        if self.args.task.lengths.is_empty() {
            return Ok(doubled(DEFAULT_LENGTHS.0, DEFAULT_LENGTHS.1.min(max_positions)));
        }
        match self.args.task.lengths.iter().find(|&&length| length > max_positions) {
            Some(&length) => Err(train::eval::EvalError::TaskLength { length, max_positions }.into()),
            None => Ok(self.args.task.lengths.clone()),
        }
    }

    /// Prompts of each kind.
    pub fn trials(&self, default: usize) -> usize {
        self.args.task.trials.unwrap_or(default)
    }

    /// What fixes every draw.
    pub fn seed(&self) -> u64 {
        self.args.task.seed.unwrap_or(0)
    }

    /// Tokens of the text that was named, or of the one that ships with shrink; of a long one the first `wanted`, and more.
    ///
    /// # Errors
    /// When a file cannot be read or holds no text.
    pub fn text(&self, wanted: Option<usize>) -> anyhow::Result<Vec<u32>> {
        let builtin = self.args.data.is_empty().then_some(Source::Text(builtin::PROSE));
        let sources = builtin.into_iter().chain(self.args.data.iter().cloned().map(Source::File));
        let documents = Documents::of(sources, &self.args.text_field)?;
        Ok(self.session.tokens_of(&self.opened.model, documents, wanted)?.ids)
    }

    /// Random numbers of so many digits, which the tokenizer was seen to write.
    ///
    /// # Errors
    /// When it does not know digits.
    pub fn numbers(&self, count: usize, digits: u32) -> anyhow::Result<Vec<String>> {
        const DIGITS: &str = "0123456789";
        let read = self.tokenizer.decode(&self.tokenizer.encode(DIGITS)?)?;
        if !read.contains(DIGITS) {
            return Err(UserError::NoDigits { read }.into());
        }
        Ok(numbers(count, digits, self.seed()).iter().map(u32::to_string).collect())
    }

    /// Whether the first number of what follows a prompt is `number`.
    pub fn says(&self, prompt: &[u32], new: &[u32], number: &str) -> bool {
        let text = self.tokenizer.decode_after(prompt, new);
        text.is_ok_and(|text| first_number(&text) == Some(number))
    }

    /// Loads the models, where there is room for continuations of `sequences` prompts of `length` tokens at a time.
    ///
    /// # Errors
    /// When there is none, or a weight cannot be read.
    pub fn load(&self, sequences: usize, length: usize) -> anyhow::Result<Examined> {
        let model = &self.opened.model;
        let alone = Footprint::running(model, self.session.weights(self.args.weights));
        // One after the other, and a donor's cache is the larger one.
        let footprint = match &self.donor {
            None => alone.cached(model.config(), sequences, length),
            Some(donor) => alone.beside(&donor.model, model).cached(donor.model.config(), sequences, length),
        };
        footprint.check(self.session, "the evaluation", self.args.guard.overcommit)?;
        let model = self.session.load_opened(&self.opened, self.args.weights)?;
        let beside = |donor: &Opened| self.session.load_beside(&donor.model, &model);
        let donor = self.donor.as_ref().map(beside).transpose()?;
        Ok(Examined { model, donor })
    }

    /// Prints a result: an object with what every task says of itself and `found`, or the text.
    ///
    /// # Errors
    /// When stdout is closed.
    pub fn print(&self, trials: usize, found: Value, text: &str) -> anyhow::Result<()> {
        let config = self.opened.model.config();
        let files = || self.args.data.iter().map(|file| file.display().to_string()).collect();
        let sources: Vec<String> = if self.args.data.is_empty() { vec!["builtin".into()] } else { files() };
        let mut object = json!({
            "model": self.opened.name(),
            "task": self.task.name(),
            "against": self.donor.as_ref().map(Opened::name),
            "text": sources,
            "trials": trials,
            "seed": self.seed(),
            "cache_dtype": config.cache_dtype.name(),
        });
        if let (Some(object), Value::Object(found)) = (object.as_object_mut(), found) {
            object.extend(found);
        }
        self.session.print(&object, text)
    }

    /// The donor's name for people.
    pub fn donor_title(&self) -> Option<String> {
        self.donor.as_ref().map(Opened::title)
    }
}

/// `first`, doubled as long as it is `most` at most; `most` alone where that is less than `first`.
pub fn doubled(first: usize, most: usize) -> Vec<usize> {
    let series: Vec<usize> =
        std::iter::successors(Some(first), |n| n.checked_mul(2)).take_while(|&n| n <= most).collect();
    if series.is_empty() { vec![most] } else { series }
}

/// The first run of digits of a text.
fn first_number(text: &str) -> Option<&str> {
    text.split(|c: char| !c.is_ascii_digit()).find(|run| !run.is_empty())
}

/// Refuses options of other tasks, and a comparison with nothing.
fn check_options(args: &EvalArgs, task: Task) -> Result<(), UserError> {
    let given = &args.task;
    let options: [(&str, bool, &[Task]); 4] = [
        ("--lengths", !given.lengths.is_empty(), &[Task::Needle, Task::Copy, Task::Agreement]),
        ("--depths", !given.depths.is_empty(), &[Task::Needle]),
        ("--pairs", !given.pairs.is_empty(), &[Task::Retrieval]),
        ("--max-new-tokens", given.max_new_tokens.is_some(), &[Task::Agreement]),
    ];
    if let Some((flag, _, of)) = options.into_iter().find(|(_, given, of)| *given && !of.contains(&task)) {
        let belongs_to = of.iter().map(|task| task.name()).collect::<Vec<_>>().join(", ");
        return Err(UserError::TaskFlag { flag, belongs_to, found: task.name() });
    }
    let missing =
        |flag, expected: &str| UserError::Flag { flag, found: "missing".into(), expected: expected.into() };
    match task {
        Task::Agreement if args.against.is_none() => {
            Err(missing("--against", "a donor whose continuations are compared"))
        }
        Task::Agreement if args.data.is_empty() => Err(missing("--data", "a text that prompts are cut from")),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_number_is_read_whole_wherever_it_stands() {
        for (text, number) in [
            (" 48213. Remember", Some("48213")),
            ("\n\n48,213", Some("48")),
            (": the pass key is 7", Some("7")),
            ("482134", Some("482134")),
            ("none", None),
            ("", None),
        ] {
            assert_eq!(first_number(text), number, "{text:?}");
        }
    }

    #[test]
    fn a_series_doubles_up_to_its_bound() {
        assert_eq!(doubled(512, 8192), [512, 1024, 2048, 4096, 8192]);
        assert_eq!(doubled(512, 1023), [512]);
        assert_eq!(doubled(512, 128), [128]);
    }
}
