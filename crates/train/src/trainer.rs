//! A run, a step at a time: whoever drives it decides when to log, to measure and to save.

use burn::tensor::Tensor;
use mla_core::{Decoder, Matrix, Slot};

use crate::backward::{Models, gradients};
use crate::batches::Batches;
use crate::eval::{EvalError, check};
use crate::factors::{Factor, factors, replace};
use crate::objective::{LossParts, Originals};
use crate::optimise::{Optimiser, Rates, Remembered, orthonormality, values};
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
    /// A teacher of another vocabulary.
    #[error("the teacher has a vocabulary of {teacher} tokens, the model one of {student}")]
    Vocabulary {
        /// Rows of the teacher's embedding.
        teacher: usize,
        /// Rows of the model's.
        student: usize,
    },
    /// NaN or infinity in a loss or a gradient.
    #[error("step {step} has a loss or gradient that is not finite{}", layer.map_or(String::new(), |layer| format!(", first in layer {layer}")))]
    NotFinite {
        /// The step, counted from 1.
        step: usize,
        /// The layer furthest down the way back that had one, where a gradient was the first.
        layer: Option<usize>,
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
            TrainError::Vocabulary { .. } => "take the donor as the teacher",
            TrainError::NotFinite { .. } => {
                "lower the learning rates, and go on from the last snapshot with --resume"
            }
            TrainError::OtherRun { .. } => {
                "resume with the same model, text and settings, or begin a new run"
            }
        };
        Some(hint.into())
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
    /// Steps done.
    step: usize,
}

/// What a step did.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepReport {
    /// Steps done, this one included.
    pub step: usize,
    /// The loss before the step, mean over its passes.
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
        if objective.needs_originals() && sources.originals.is_none() {
            return Err(TrainError::NeedsOriginals { loss: objective.name() });
        }
        let optimiser = Optimiser::new(&factors, settings.weight_decay, settings.max_grad_norm);
        let batches = Batches::new(windows, settings.batch_size, settings.seed);
        Ok(Self { student, factors, optimiser, sources, batches, settings, step: 0 })
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
        let share = 1.0 / passes.len() as f64;
        let models = Models {
            student: &self.student,
            teacher: self.sources.teacher,
            originals: self.sources.originals,
        };
        let (mut loss, mut sum, mut tokens) = (LossParts::default(), None::<Vec<Tensor<2>>>, 0);
        for pass in passes {
            let batch = self.batches.get(pass);
            tokens += batch.iter().map(Vec::len).sum::<usize>();
            let found = gradients(models, &self.factors, &batch, self.settings.objective());
            loss = loss.plus(&found.loss, share);
            let of = found.of.into_iter().map(|g| g * share);
            sum = Some(match sum {
                Some(sum) => sum.into_iter().zip(of).map(|(sum, g)| sum + g).collect(),
                None => of.collect(),
            });
        }
        let sum = sum.expect("a step has a pass");
        if let Some(layer) = self.not_finite(&sum) {
            return Err(TrainError::NotFinite { step: step + 1, layer: Some(layer) });
        }
        if !loss.total.is_finite() {
            return Err(TrainError::NotFinite { step: step + 1, layer: None });
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
            let finite = gradient.clone().abs().sum().into_scalar::<f64>().is_finite();
            (!finite).then_some(layer)
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
            factors: self.factors.iter().map(read).collect(),
            remembered: self.optimiser.remembered(),
        }
    }

    /// Goes back to a snapshot of this run: from there on, every step is what it would have been.
    ///
    /// # Errors
    /// When it is of another run.
    pub fn restore(&mut self, snapshot: Snapshot) -> Result<(), TrainError> {
        let other = |what: String| Err(TrainError::OtherRun { what });
        if snapshot.settings != self.settings {
            return other("its settings differ".into());
        }
        let shapes = |(slot, matrix): &(Slot, Matrix)| (*slot, [matrix.rows, matrix.cols]);
        let ours: Vec<_> = self.factors.iter().map(|factor| (factor.slot, factor.shape)).collect();
        if snapshot.factors.iter().map(shapes).collect::<Vec<_>>() != ours {
            return other("its matrices are of another model".into());
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
