//! Perplexity on text that is not trained on: which step was best, and whether to go on.

use mla_core::Decoder;
use train::eval::{Pass, Windowing, perplexity};

use crate::args::TrainArgs;
use crate::error::UserError;
use crate::session::{Opened, Session};

/// The validation text of a run, and what was measured on it.
#[derive(Debug)]
pub struct Validation {
    tokens: Vec<u32>,
    windowing: Windowing,
    windows: usize,
    patience: Option<usize>,
    /// Steps and perplexities in the order of measurement; step 0 is before training.
    measured: Vec<(usize, f64)>,
}

impl Validation {
    /// Reads the validation text, where one was named.
    ///
    /// # Errors
    /// When a file cannot be read, or has not one window.
    pub fn open(
        session: &Session,
        args: &TrainArgs,
        opened: &Opened,
        settings: &train::Settings,
    ) -> anyhow::Result<Option<Self>> {
        if args.validation.is_empty() {
            return Ok(None);
        }
        let windowing = Windowing::Consecutive { length: settings.max_length };
        let wanted = Some(windowing.reach(args.validation_windows));
        let tokens = session.tokens(&opened.model, &args.validation, &args.text_field, wanted)?;
        if tokens.len() < settings.max_length {
            let found = format!("a text of {} tokens", tokens.len());
            let expected = format!("at least one window of {}", settings.max_length);
            return Err(UserError::Flag { flag: "--validation", found, expected }.into());
        }
        Ok(Some(Self {
            tokens,
            windowing,
            windows: args.validation_windows,
            patience: settings.early_stopping_patience,
            measured: Vec::new(),
        }))
    }

    /// What is measured on: its windows' tokens.
    pub fn text(&self) -> &[u32] {
        let Windowing::Consecutive { length } = self.windowing else { return &self.tokens };
        &self.tokens[..self.tokens.len().min(self.windows * length)]
    }

    /// What a run that goes on had measured before it was stopped.
    pub fn remember(&mut self, measured: Vec<(usize, f64)>) {
        self.measured = measured;
    }

    /// Measures the model after a step.
    ///
    /// # Errors
    /// When the text is too short for a window, or a log-probability is no number.
    pub fn measure(&mut self, decoder: &Decoder, step: usize) -> anyhow::Result<f64> {
        let limit = Some(self.windows);
        let found =
            perplexity(decoder, &self.tokens, self.windowing, limit, Pass::Full, &mut |_, _| {})?.perplexity;
        self.measured.push((step, found));
        Ok(found)
    }

    /// Before training.
    pub fn before(&self) -> Option<f64> {
        self.measured.iter().find(|(step, _)| *step == 0).map(|(_, perplexity)| *perplexity)
    }

    /// The step that measured best, and what it measured. Of equals the first; step 0 is no choice.
    pub fn best(&self) -> Option<(usize, f64)> {
        let trained = self.measured.iter().filter(|(step, _)| *step > 0).copied();
        trained.min_by(|a, b| a.1.total_cmp(&b.1))
    }

    /// Whether as many validations as the patience allows have followed the best.
    pub fn is_exhausted(&self) -> bool {
        let Some((best, _)) = self.best() else { return false };
        let since = self.measured.iter().filter(|(step, _)| *step > best).count();
        self.patience.is_some_and(|patience| since >= patience)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(patience: Option<usize>, measured: &[(usize, f64)]) -> Validation {
        let windowing = Windowing::Consecutive { length: 2 };
        Validation { tokens: Vec::new(), windowing, windows: 1, patience, measured: measured.to_vec() }
    }

    #[test]
    fn the_best_is_a_trained_one_and_of_equals_the_first() {
        let found = measured(None, &[(0, 1.0), (10, 5.0), (20, 4.0), (30, 4.0)]);
        assert_eq!((found.before(), found.best()), (Some(1.0), Some((20, 4.0))));
        assert_eq!(measured(None, &[(0, 1.0)]).best(), None);
        assert!(!found.is_exhausted(), "without a patience a run goes to its end");
    }

    #[test]
    fn patience_counts_validations_since_the_best() {
        let steps = [(0, 9.0), (10, 5.0), (20, 6.0), (30, 5.5)];
        assert!(!measured(Some(2), &steps[..3]).is_exhausted());
        assert!(measured(Some(2), &steps).is_exhausted());
        assert!(!measured(Some(1), &steps[..2]).is_exhausted());
        assert!(!measured(Some(1), &steps[..1]).is_exhausted());
    }
}
