//! A run, a step at a time: whoever drives it decides when to log, to measure and to save.

use std::fmt;

use burn::tensor::Tensor;
use mla_core::{Decoder, Matrix, Slot};

use crate::backward::{Models, gradients, is_finite};
use crate::batches::Batches;
use crate::eval::{EvalError, check};
use crate::factors::{Factor, factors, replace};
use crate::objective::{LossParts, Originals};
use crate::optimise::{Optimiser, Rates, Remembered, orthonormality, values};
use crate::origin::{Origin, keys_values};
use crate::settings::{BadSetting, Settings};

/// A run that cannot begin or go on.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum TrainError {
    /// A setting out of range.
    #[error(transparent)]
    Setting(#[from] BadSetting),
    /// A model without latents.
    #[error("nothing would train: no layer of the model has latents")]
    NothingToTrain,
    /// Text that the model cannot read, or too little of it.
    #[error(transparent)]
    Text(#[from] EvalError),
    /// A loss without the one who is imitated.
    #[error("the loss {loss} needs a teacher")]
    NeedsTeacher {
        /// The loss.
        loss: &'static str,
    },
    /// A loss without what is to be reconstructed.
    #[error("the loss {loss} needs the original W_k and W_v")]
    NeedsOriginals {
        /// The loss.
        loss: &'static str,
    },
    /// A loss that compares keys with the donor's, of a model whose keys stand for something else.
    #[error("the loss {loss} compares keys, and those beside a shared key are not the donor's")]
    SharedKeys {
        /// The loss.
        loss: &'static str,
    },
    /// A teacher of another vocabulary.
    #[error("the teacher has a vocabulary of {teacher} tokens, the model one of {student}")]
    Vocabulary {
        /// Rows of the teacher's embedding.
        teacher: usize,
        /// Rows of the model's.
        student: usize,
    },
    /// Originals of another shape.
    #[error("the original W_k and W_v are {original:?}, those of the model were {model:?}")]
    OtherShape {
        /// Their rows and columns.
        original: [usize; 2],
        /// The model's.
        model: [usize; 2],
    },
    /// NaN or infinity in a loss or a gradient.
    #[error("step {step}: {place} not finite")]
    NotFinite {
        /// The step, counted from 1.
        step: usize,
        /// Where it came up.
        place: Place,
    },
    /// A snapshot of another run.
    #[error("the snapshot is of another run: {what}")]
    OtherRun {
        /// What differs.
        what: String,
    },
}

impl TrainError {
    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            TrainError::Setting(_) => "shrink help train lists every setting with its default",
            TrainError::NothingToTrain => "train a converted folder: shrink convert MODEL -o OUT makes one",
            TrainError::Text(error) => return error.hint(),
            TrainError::NeedsTeacher { .. } => "name the donor with --teacher",
            TrainError::NeedsOriginals { .. } => {
                "convert with --store-original-weights, or name the donor with --teacher"
            }
            TrainError::SharedKeys { .. } => "take --loss kl, with the donor as --teacher",
            TrainError::Vocabulary { .. } => "take the donor as the teacher",
            TrainError::OtherShape { .. } => "take the donor as the teacher",
            TrainError::NotFinite { .. } => {
                "lower the learning rates: --resume with other --euclidean-lr and --riemannian-lr goes on from the last snapshot"
            }
            TrainError::OtherRun { .. } => {
                "resume with the same model, text and settings, or begin a new run"
            }
        };
        Some(hint.into())
    }
}

/// Where a number that is not finite came up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// On the way forwards, in the output of this layer first.
    Output(usize),
    /// In the loss, all layers' outputs being finite.
    Loss,
    /// On the way back, in the gradients of this layer first.
    Gradient(usize),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Output(layer) => write!(f, "the output of layer {layer}, the first of them, is"),
            Place::Loss => write!(f, "the loss, after layers whose output is finite, is"),
            Place::Gradient(layer) => {
                write!(f, "the gradient of layer {layer}, the first on the way back, is")
            }
        }
    }
}

/// Text cut into windows for training: consecutive, without overlap; a rest is left out.
///
/// # Errors
/// When there is not one window, or the model could not read it.
pub fn windows(tokens: &[u32], length: usize, student: &Decoder) -> Result<Vec<Vec<u32>>, TrainError> {
    check(student, tokens, length)?;
    if tokens.len() < length {
        return Err(EvalError::TooShort { tokens: tokens.len(), length }.into());
    }
    Ok(tokens.chunks_exact(length).map(<[u32]>::to_vec).collect())
}

/// Who takes part beside the student.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sources<'a> {
    /// Who is imitated.
    pub teacher: Option<&'a Decoder>,
    /// What is reconstructed.
    pub originals: Option<&'a Originals>,
}

/// A run.
#[derive(Debug)]
pub struct Trainer<'a> {
    student: Decoder,
    factors: Vec<Factor>,
    optimiser: Optimiser,
    sources: Sources<'a>,
    batches: Batches<'a>,
    settings: Settings,
    origin: Origin,
    /// Steps done.
    step: usize,
}

/// What a step did.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepReport {
    /// Steps done, this one included.
    pub step: usize,
    /// The loss before the step, mean over its windows.
    pub loss: LossParts,
    /// The gradient's norm before it was shortened.
    pub grad_norm: f64,
    /// The learning rates.
    pub rates: Rates,
    /// Tokens that were read.
    pub tokens: usize,
}

/// All that a run needs to go on.
#[derive(Clone, Debug, PartialEq)]
pub struct Snapshot {
    /// Steps done.
    pub step: usize,
    /// The settings of the run.
    pub settings: Settings,
    /// What else it is of.
    pub origin: Origin,
    /// Every factor as burn multiplies it, `[d_in, d_out]`.
    pub factors: Vec<(Slot, Matrix)>,
    /// What the optimisers remember of each.
    pub remembered: Vec<Option<Remembered>>,
}

impl<'a> Trainer<'a> {
    /// A run that has not begun.
    ///
    /// # Errors
    /// When a setting is out of range, nothing would train, or the loss needs what is not there.
    pub fn new(
        student: Decoder,
        sources: Sources<'a>,
        windows: &'a [Vec<u32>],
        settings: Settings,
    ) -> Result<Self, TrainError> {
        settings.check()?;
        let objective = settings.objective();
        let factors = factors(&student);
        if factors.is_empty() {
            return Err(TrainError::NothingToTrain);
        }
        if windows.is_empty() {
            return Err(EvalError::TooShort { tokens: 0, length: settings.max_length }.into());
        }
        if objective.needs_teacher() {
            let teacher = sources.teacher.ok_or(TrainError::NeedsTeacher { loss: objective.name() })?;
            let (teacher, student) = (teacher.config().vocab_size, student.config().vocab_size);
            if teacher != student {
                return Err(TrainError::Vocabulary { teacher, student });
            }
        }
        let shared = |layer: usize| student.config().latent(layer).is_some_and(|l| l.shared_key().is_some());
        if objective.needs_originals() && (0..student.config().n_layers()).any(shared) {
            return Err(TrainError::SharedKeys { loss: objective.name() });
        }
        if objective.needs_originals() && sources.originals.is_none() {
            return Err(TrainError::NeedsOriginals { loss: objective.name() });
        }
        let config = student.config();
        let model = [config.d_model, config.d_kv()];
        if let Some(original) = sources.originals.and_then(|originals| originals.unlike(model)) {
            return Err(TrainError::OtherShape { original, model });
        }
        let optimiser = Optimiser::new(&factors, settings.weight_decay, settings.max_grad_norm);
        let batches = Batches::new(windows, settings.batch_size, settings.seed);
        let mut origin = Origin::default();
        origin.add_text("text", windows.iter().map(Vec::as_slice));
        let values = values(&student);
        origin.add_matrices("model", factors.iter().map(|factor| values[&factor.id].clone()));
        if let Some(teacher) = sources.teacher {
            origin.add_matrices("teacher", keys_values(teacher));
        }
        Ok(Self { student, factors, optimiser, sources, batches, settings, origin, step: 0 })
    }

    /// What else the run is of than its settings, its text, its model and its teacher: what a caller measures by, say. A
    /// snapshot that is of something else is then not gone on from.
    pub fn origin_mut(&mut self) -> &mut Origin {
        &mut self.origin
    }

    /// The model as it is now.
    pub fn student(&self) -> &Decoder {
        &self.student
    }

    /// What trains.
    pub fn factors(&self) -> &[Factor] {
        &self.factors
    }

    /// Steps done.
    pub fn done(&self) -> usize {
        self.step
    }

    /// Steps of the whole run.
    pub fn steps(&self) -> usize {
        self.settings.steps(self.batches.of_an_epoch())
    }

    /// `max |W_upᵀ W_up − I|` over all `W_up`.
    pub fn orthonormality(&self) -> f64 {
        orthonormality(&self.student, &self.factors)
    }

    /// One step. The model and the optimisers are as they were if it fails.
    ///
    /// # Errors
    /// When a loss or a gradient is not finite.
    ///
    /// # Panics
    /// If the run is over.
    pub fn step(&mut self) -> Result<StepReport, TrainError> {
        let (step, steps) = (self.step, self.steps());
        assert!(step < steps, "the run is over");
        let first = step * self.settings.gradient_accumulation_steps;
        let passes = self.settings.passes(self.batches.of_an_epoch());
        let passes = first..(first + self.settings.gradient_accumulation_steps).min(passes);
        let batches: Vec<_> = passes.map(|pass| self.batches.get(pass)).collect();
        let windows = batches.iter().map(Vec::len).sum::<usize>();
        let models = Models {
            student: &self.student,
            teacher: self.sources.teacher,
            originals: self.sources.originals,
        };
        let (mut loss, mut sum, mut tokens) = (LossParts::default(), None::<Vec<Tensor<2>>>, 0);
        let not_finite = |place| TrainError::NotFinite { step: step + 1, place };
        for batch in batches {
            tokens += batch.iter().map(Vec::len).sum::<usize>();
            // A mean over the step's tokens, whatever the passes that they come in: all windows are equally long.
            let share = batch.len() as f64 / windows as f64;
            let found = gradients(models, &self.factors, &batch, self.settings.objective())
                .map_err(|overflow| not_finite(overflow.layer.map_or(Place::Loss, Place::Output)))?;
            loss = loss.plus(&found.loss, share);
            let of = found.of.into_iter().map(|g| g * share);
            sum = Some(match sum {
                Some(sum) => sum.into_iter().zip(of).map(|(sum, g)| sum + g).collect(),
                None => of.collect(),
            });
        }
        let sum = sum.expect("a step has a pass");
        if let Some(layer) = self.not_finite(&sum) {
            return Err(not_finite(Place::Gradient(layer)));
        }
        let rates = self.settings.rates(step, steps);
        let (student, grad_norm) = self.optimiser.step(self.student.clone(), &self.factors, sum, rates);
        self.student = student;
        self.step += 1;
        Ok(StepReport { step: self.step, loss, grad_norm, rates, tokens })
    }

    /// The last layer with a gradient that is not finite: where it came up on the way back.
    fn not_finite(&self, gradients: &[Tensor<2>]) -> Option<usize> {
        let bad = |(factor, gradient): (&Factor, &Tensor<2>)| {
            let Slot::Layer(layer, _) = factor.slot else { return None };
            (!is_finite(gradient)).then_some(layer)
        };
        self.factors.iter().zip(gradients).filter_map(bad).max()
    }

    /// All that the run needs to go on.
    pub fn snapshot(&self) -> Snapshot {
        let values = values(&self.student);
        let read = |factor: &Factor| (factor.slot, Matrix::from_tensor(&values[&factor.id]));
        Snapshot {
            step: self.step,
            settings: self.settings.clone(),
            origin: self.origin.clone(),
            factors: self.factors.iter().map(read).collect(),
            remembered: self.optimiser.remembered(),
        }
    }

    /// Goes back to a snapshot of this run: from there on, every step is what it would have been. Learning rates may be others
    /// than the snapshot's, and so may what no step depends on ([`Settings::unlike`]).
    ///
    /// # Errors
    /// When it is of another run.
    pub fn restore(&mut self, snapshot: Snapshot) -> Result<(), TrainError> {
        let other = |what: String| Err(TrainError::OtherRun { what });
        if let Some(difference) = self.settings.unlike(&snapshot.settings) {
            return other(difference);
        }
        let shapes = |(slot, matrix): &(Slot, Matrix)| (*slot, [matrix.rows, matrix.cols]);
        let ours: Vec<_> = self.factors.iter().map(|factor| (factor.slot, factor.shape)).collect();
        if snapshot.factors.iter().map(shapes).collect::<Vec<_>>() != ours {
            return other("its matrices are of another model".into());
        }
        if let Some(name) = self.origin.difference(&snapshot.origin) {
            return other(format!("its {name} is another"));
        }
        if snapshot.step > self.steps() {
            return other(format!("it has {} steps, this one {}", snapshot.step, self.steps()));
        }
        let device = self.student.device();
        let write =
            |(factor, (_, matrix)): (&Factor, &(Slot, Matrix))| (factor.id, matrix.to_tensor(&device));
        let values = self.factors.iter().zip(&snapshot.factors).map(write).collect();
        self.student = replace(self.student.clone(), values);
        self.optimiser.remember(&self.factors, snapshot.remembered, &device);
        self.step = snapshot.step;
        Ok(())
    }
}
