//! Losses and gradients of latent attention, a block at a time, against PyTorch's autograd (`goldens/training`).

use std::collections::BTreeMap;

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{Device, Tensor};
use handlers::{Model, Registry};
use mla_core::decoder::{AttentionKind, LatentConfig, LatentWidth};
use mla_core::{Decoder, LayerSlot, Matrix, Patch, Slot, WeightMap, WeightSource};
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;
use train::{
    Constraint, Factor, Loss, Models, Objective, Optimiser, Originals, Place, Rates, Settings, Snapshots,
    Sources, TrainError, Trainer, factors, gradients, orthonormality, replace, trainable, values,
};

use crate::folder::golden;

/// The golden's own record and its tensors.
struct Golden {
    record: Value,
    ids: Vec<Vec<u32>>,
    tensors: BTreeMap<String, Matrix>,
}

fn load() -> Golden {
    let text = std::fs::read_to_string(golden("training/golden.json")).expect("the record");
    let bytes = std::fs::read(golden("training/golden.safetensors")).expect("the goldens");
    let file = SafeTensors::deserialize(&bytes).expect("a safetensors file");
    let (mut tensors, mut ids) = (BTreeMap::new(), Vec::new());
    for (name, view) in file.tensors() {
        let [rows, cols] = *view.shape() else { panic!("{name} is no matrix") };
        if name == "ids" {
            let id = |b: &[u8]| i64::from_le_bytes(b.try_into().expect("eight bytes")) as u32;
            ids =
                view.data().chunks_exact(8 * cols).map(|row| row.chunks_exact(8).map(id).collect()).collect();
            continue;
        }
        assert_eq!(view.dtype(), Dtype::F32, "{name}");
        let number = |b: &[u8]| f32::from_le_bytes(b.try_into().expect("four bytes"));
        tensors.insert(name, Matrix::new(rows, cols, view.data().chunks_exact(4).map(number).collect()));
    }
    Golden { record: serde_json::from_str(&text).expect("JSON"), ids, tensors }
}

/// `3.UpKey` as a slot.
fn slot(layer: &str, name: &str) -> Slot {
    let known = [
        LayerSlot::DownKey,
        LayerSlot::UpKey,
        LayerSlot::DownValue,
        LayerSlot::UpValue,
        LayerSlot::DownJoint,
        LayerSlot::UpJoint,
        LayerSlot::CrossKey,
        LayerSlot::CrossValue,
    ];
    let slot = known.into_iter().find(|slot| format!("{slot:?}") == name).expect("a slot");
    Slot::Layer(layer.parse().expect("a layer"), slot)
}

impl Golden {
    /// The tensors under a prefix, by slot.
    fn under<'a>(&'a self, prefix: &str) -> BTreeMap<Slot, &'a Matrix> {
        let of = |(name, matrix): (&String, &'a Matrix)| {
            let rest = name.strip_prefix(prefix)?.strip_prefix('.')?;
            let (layer, name) = rest.split_once('.')?;
            layer.parse::<usize>().ok()?;
            Some((slot(layer, name), matrix))
        };
        self.tensors.iter().filter_map(of).collect()
    }

    /// The factors of a method, with the graph they belong to.
    fn patch(&self, method: &str, donor: &Model) -> WeightMap {
        let mut config = donor.config().clone();
        let layers = self.record["methods"][method].as_array().expect("layers");
        for (layer, spec) in layers.iter().enumerate().filter(|(_, spec)| !spec.is_null()) {
            let number = |at: usize| spec[at].as_u64().map(|n| n as usize);
            let (first, second) = (number(1).expect("a width"), number(2).expect("a width"));
            let width = match spec[0].as_str() {
                Some("joint") => LatentWidth::Joint { d_latent: first },
                _ => LatentWidth::Split { d_latent_k: first, d_latent_v: second },
            };
            let up_of = number(3).unwrap_or(layer);
            config.layers[layer].attention = AttentionKind::Latent(LatentConfig {
                up_of,
                reads_from: number(4),
                ..LatentConfig::alone(up_of, width)
            });
        }
        let mut patch = WeightMap::new(config);
        for (slot, matrix) in self.under(method) {
            patch.insert(slot, matrix.clone());
        }
        patch
    }
}

#[test]
fn losses_and_gradients_are_those_of_pytorch() {
    let golden_training = load();
    let twin = golden_training.record["twin"].as_str().expect("a twin");
    let donor = Model::open(golden(twin).as_ref(), &Registry::builtin()).expect("a twin");
    let device = Device::flex();
    let teacher = Decoder::load(&donor, &device).expect("the teacher loads");
    let methods: Vec<&String> =
        golden_training.record["methods"].as_object().expect("methods").keys().collect();
    assert_eq!(methods.len(), 7);
    for method in methods {
        let patch = golden_training.patch(method, &donor);
        let student = Decoder::load(&patch.over(&donor), &device).expect("the student loads");
        let config = student.config();
        let latent: Vec<bool> = (0..config.n_layers()).map(|layer| config.latent(layer).is_some()).collect();
        let originals = Originals::load(&donor, &latent, &device).expect("the donor has them");
        let found = factors(&student);
        let orthonormal = found.iter().filter(|factor| factor.constraint == Constraint::Orthonormal).count();
        assert_eq!(found.len(), golden_training.under(method).len(), "{method}");
        assert_eq!(found.iter().map(Factor::size).sum::<usize>(), trainable(config), "{method}");
        assert!(orthonormal > 0 && orthonormal < found.len());
        let models = Models { student: &student, teacher: Some(&teacher), originals: Some(&originals) };
        for objective in [
            Objective::LanguageModel,
            Objective::Kl,
            Objective::Distillation { alpha: 0.9, temperature: 2.0 },
            Objective::Reconstruction { alpha: 0.3 },
        ] {
            let what = format!("{method}.{}", objective.name());
            let ours = gradients(models, &found, &golden_training.ids, objective).expect("a finite loss");
            let loss = golden_training.record["losses"][&what].as_f64().expect("a loss");
            assert!((ours.loss.total - loss).abs() < 1e-5 * loss, "{what}: {} {loss}", ours.loss.total);
            let expected = golden_training.under(&what);
            let is_kept =
                matches!(objective, Objective::Distillation { .. } | Objective::Reconstruction { .. });
            assert_eq!(expected.len(), if is_kept { found.len() } else { 0 }, "{what}");
            if !is_kept {
                continue;
            }
            for (factor, gradient) in found.iter().zip(ours.of) {
                let gradient = Matrix::from_tensor(&gradient.transpose());
                let expected = expected[&factor.slot];
                let norm = |values: &mut dyn Iterator<Item = f32>| values.map(|x| x * x).sum::<f32>().sqrt();
                let gap = norm(&mut gradient.data.iter().zip(&expected.data).map(|(a, b)| a - b));
                let size = norm(&mut expected.data.iter().copied());
                assert!(size > 0.0 && gap <= 1e-3 * size, "{what}, {}: {:e}", factor.slot, gap / size);
            }
        }
    }
}

#[test]
fn ten_steps_lose_what_they_lose_with_pytorch_and_geoopt() {
    let golden_training = load();
    let twin = golden_training.record["twin"].as_str().expect("a twin");
    let donor = Model::open(golden(twin).as_ref(), &Registry::builtin()).expect("a twin");
    let device = Device::flex();
    let teacher = Decoder::load(&donor, &device).expect("the teacher loads");
    let runs = &golden_training.record["runs"];
    let number = |field: &str| runs[field].as_f64().expect("a number");
    let rates = Rates { euclidean: number("euclidean_lr"), riemannian: number("riemannian_lr") };
    let objective = Objective::Distillation { alpha: 0.9, temperature: 2.0 };
    for (method, losses) in runs["losses"].as_object().expect("runs") {
        let patch = golden_training.patch(method, &donor);
        let mut student = Decoder::load(&patch.over(&donor), &device).expect("the student loads");
        let start = student.clone();
        let trained = factors(&student);
        let mut optimiser = Optimiser::new(&trained, number("weight_decay"), number("max_grad_norm"));
        let losses = losses.as_array().expect("losses");
        assert_eq!(losses.len(), 10);
        for (step, expected) in losses.iter().enumerate() {
            let models = Models { student: &student, teacher: Some(&teacher), originals: None };
            let found = gradients(models, &trained, &golden_training.ids, objective).expect("a finite loss");
            let expected = expected.as_f64().expect("a loss");
            let gap = (found.loss.total - expected).abs();
            assert!(gap <= 1e-3 * expected, "{method}, step {step}: {} {expected}", found.loss.total);
            let norm;
            (student, norm) = optimiser.step(student, &trained, found.of, rates);
            assert!(norm > 0.0);
        }
        assert!(orthonormality(&student, &trained) < 1e-5);
        // What is counted is what has moved, and nothing else has.
        let (now, then) = (values(&student), values(&start));
        for factor in &trained {
            let gap = (now[&factor.id].clone() - then[&factor.id].clone()).abs().max();
            assert!(gap.into_scalar::<f32>() > 1e-4, "{method}: {} stood still", factor.slot);
        }
        let restored = train::replace(student, then);
        assert_eq!(weights(&restored), weights(&start), "{method}");
        let total: usize = trained.iter().map(train::Factor::size).sum();
        assert_eq!(
            total,
            golden_training.under(method).values().map(|matrix| matrix.data.len()).sum::<usize>()
        );
    }
}

/// Every number of a decoder.
fn weights(decoder: &Decoder) -> Vec<f32> {
    struct Collect(Vec<f32>);
    impl ModuleVisitor for Collect {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            self.0.extend(param.val().into_data().iter::<f32>());
        }
    }
    let mut found = Collect(Vec::new());
    decoder.visit(&mut found);
    found.0
}

/// A run on the twin: windows of its golden, distillation, two passes a step.
fn trainer<'a>(
    student: &Decoder,
    teacher: &'a Decoder,
    windows: &'a [Vec<u32>],
    settings: Settings,
) -> Trainer<'a> {
    let sources = Sources { teacher: Some(teacher), originals: None };
    Trainer::new(student.clone(), sources, windows, settings).expect("a run")
}

#[test]
fn a_run_that_was_interrupted_ends_at_the_same_bits() {
    let golden_training = load();
    let donor = Model::open(golden("qwen2").as_ref(), &Registry::builtin()).expect("a twin");
    let device = Device::flex();
    let teacher = Decoder::load(&donor, &device).expect("the teacher loads");
    let settings = Settings {
        euclidean_lr: 1e-3,
        riemannian_lr: 1e-2,
        num_epochs: 4,
        batch_size: 1,
        gradient_accumulation_steps: 2,
        warmup_steps: 2,
        ..Settings::default()
    };
    for method in ["xkv", "cascade"] {
        let patch = golden_training.patch(method, &donor);
        let student = Decoder::load(&patch.over(&donor), &device).expect("the student loads");
        let new = || trainer(&student, &teacher, &golden_training.ids, settings.clone());
        let run = |trainer: &mut Trainer<'_>, to: usize| -> Vec<f64> {
            (trainer.done()..to).map(|_| trainer.step().expect("finite").loss.total).collect()
        };
        let mut whole = new();
        assert_eq!(whole.steps(), 6, "12 passes, two a step");
        let losses = run(&mut whole, 6);
        assert!(losses[5] < losses[0], "{losses:?}");

        let folder = tempfile::tempdir().expect("a folder");
        let snapshots = Snapshots::new(folder.path(), 2);
        let mut first = new();
        run(&mut first, 4);
        snapshots.save(&first.snapshot()).expect("room");
        let (snapshot, damaged) = snapshots.newest().expect("a folder");
        assert!(damaged.is_empty());
        let mut second = new();
        second.restore(snapshot.expect("a snapshot")).expect("the same run");
        assert_eq!(run(&mut second, 6), losses[4..]);
        assert_eq!(weights(second.student()), weights(whole.student()), "{method}");
        assert_eq!(second.snapshot(), whole.snapshot());

        let mut slower = trainer(
            &student,
            &teacher,
            &golden_training.ids,
            Settings { riemannian_lr: 1e-3, ..settings.clone() },
        );
        slower.restore(first.snapshot()).expect("other rates may follow");
        assert_ne!(run(&mut slower, 6), losses[4..]);

        let refused = |student: &Decoder, teacher: &Decoder, ids: &[Vec<u32>], settings: Settings| {
            let error = trainer(student, teacher, ids, settings).restore(first.snapshot());
            error.expect_err("another run").to_string()
        };
        let ids = &golden_training.ids;
        let seed = Settings { seed: 1, ..settings.clone() };
        assert!(refused(&student, &teacher, ids, seed).ends_with("seed was 0 and is 1"));
        let turned: Vec<_> = ids.iter().rev().cloned().collect();
        assert!(refused(&student, &teacher, &turned, settings.clone()).ends_with("its text is another"));
        let moved = whole.student();
        assert!(refused(moved, &teacher, ids, settings.clone()).ends_with("its model is another"));
        assert!(refused(&student, moved, ids, settings.clone()).ends_with("its teacher is another"));
    }
}

#[test]
fn a_step_is_a_mean_over_its_tokens_whatever_its_passes() {
    let golden_training = load();
    let donor = Model::open(golden("qwen2").as_ref(), &Registry::builtin()).expect("a twin");
    let device = Device::flex();
    let teacher = Decoder::load(&donor, &device).expect("the teacher loads");
    let patch = golden_training.patch("xkv", &donor);
    let student = Decoder::load(&patch.over(&donor), &device).expect("the student loads");
    assert_eq!(golden_training.ids.len(), 3, "two windows and one");
    let first = |batch_size, gradient_accumulation_steps| {
        let settings = Settings { batch_size, gradient_accumulation_steps, ..Settings::default() };
        trainer(&student, &teacher, &golden_training.ids, settings).step().expect("finite")
    };
    let (whole, parts) = (first(3, 1), first(2, 2));
    assert_eq!(whole.tokens, parts.tokens);
    assert!((whole.loss.total / parts.loss.total - 1.0).abs() < 1e-6, "{whole:?} {parts:?}");
    assert!((whole.grad_norm / parts.grad_norm - 1.0).abs() < 1e-5, "{whole:?} {parts:?}");
}

#[test]
fn a_number_that_is_none_is_named_by_where_it_came_up() {
    let golden_training = load();
    let donor = Model::open(golden("qwen2").as_ref(), &Registry::builtin()).expect("a twin");
    let device = Device::flex();
    let teacher = Decoder::load(&donor, &device).expect("the teacher loads");
    let patch = golden_training.patch("separate", &donor);
    let student = Decoder::load(&patch.over(&donor), &device).expect("the student loads");
    let found = factors(&student);
    let broken = found
        .iter()
        .find(|factor| factor.slot == Slot::Layer(1, LayerSlot::DownValue))
        .expect("layer 1 has latents");
    let huge = Tensor::<2>::full(broken.shape, f32::MAX, &device);
    let student = replace(student, [(broken.id, huge)].into());
    let mut run = trainer(&student, &teacher, &golden_training.ids, Settings::default());
    let (before, error) = (run.snapshot(), run.step().expect_err("it overflows"));
    assert_eq!(error, TrainError::NotFinite { step: 1, place: Place::Output(1) });
    assert!(error.to_string().contains("the output of layer 1"), "{error}");
    assert_eq!(run.snapshot(), before, "nothing has moved");
}

#[test]
fn a_run_that_cannot_be_is_refused_before_it_begins() {
    let golden_training = load();
    let donor = Model::open(golden("qwen2").as_ref(), &Registry::builtin()).expect("a twin");
    let device = Device::flex();
    let teacher = Decoder::load(&donor, &device).expect("the teacher loads");
    let patch = golden_training.patch("joint", &donor);
    let student = Decoder::load(&patch.over(&donor), &device).expect("the student loads");
    let refused = |student: &Decoder, sources: Sources<'_>, loss: Loss| {
        let settings = Settings { loss, ..Settings::default() };
        let error =
            Trainer::new(student.clone(), sources, &golden_training.ids, settings).expect_err("no run");
        assert!(error.hint().is_some());
        error.to_string()
    };
    let nobody = Sources::default();
    assert!(refused(&teacher, nobody, Loss::Lm).contains("no layer of the model has latents"));
    assert!(refused(&student, nobody, Loss::Kl).contains("the loss kl needs a teacher"));
    assert!(refused(&student, nobody, Loss::Distillation).contains("needs a teacher"));
    let imitated = Sources { teacher: Some(&teacher), originals: None };
    assert!(refused(&student, imitated, Loss::Reconstruction).contains("needs the original W_k and W_v"));
    let wider = Model::open(golden("llama").as_ref(), &Registry::builtin()).expect("a twin");
    let wider = Originals::load(&wider, &[true; 3], &device).expect("it has them");
    let others = Sources { teacher: None, originals: Some(&wider) };
    assert!(
        refused(&student, others, Loss::Reconstruction)
            .contains("[32, 32], those of the model were [32, 16]")
    );
    assert!(
        train::windows(&[1; 10], 11, &student)
            .is_err_and(|e| e.to_string().contains("fewer than one window"))
    );
    assert!(train::windows(&[1; 99], 65, &student).is_err_and(|e| e.to_string().contains("context of 64")));
    assert!(train::windows(&[264; 10], 5, &student).is_err_and(|e| e.to_string().contains("token 264")));
    assert_eq!(train::windows(&[1; 11], 5, &student).map(|windows| windows.len()), Ok(2));
}
