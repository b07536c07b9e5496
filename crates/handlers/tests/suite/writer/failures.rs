//! A folder that cannot be written leaves everything as it was.

use std::path::Path;

use handlers::{Dtype, Error, Existing, FolderPlan, Model, Output, write_folder};
use mla_core::{LayerSlot, Matrix, WeightMap, WeightSource};

use super::{place, plan, reopen, write, written};
use crate::conversion::{exact, random};
use crate::hostile::refuses;
use crate::scratch::Scratch;
use crate::twin::open;

/// A twin with one weight set, in f32.
fn donor_with(weight: f32) -> (Scratch, Model) {
    let scratch = Scratch::of("llama");
    scratch.edit_weights(|tensors| {
        tensors.get_mut("model.layers.1.mlp.up_proj.weight").expect("a weight").set(7, weight);
    });
    let model = scratch.open().expect("weights are read when they are needed");
    (scratch, model)
}

fn force(plan: &FolderPlan<'_>, out: &Path) -> Result<(), Error> {
    let output = Output::prepare(out, Existing::Replace, plan.donor.folder())?;
    write_folder(plan, output, &|_, _| {}).map(|_| ())
}

#[test]
fn an_existing_folder_is_replaced_only_by_force() {
    let donor = open("llama");
    let (first, second) = (random(&donor, 4, 4, 1), random(&donor, 8, 8, 2));
    let scratch = Scratch::empty();
    written(&scratch, &plan(&donor, &first));
    std::fs::write(place(&scratch).join("mine.txt"), "kept").expect("a file");
    refuses!(write(&plan(&donor, &second), &place(&scratch)), Error::OutputExists { path } if *path == place(&scratch));
    assert_eq!(reopen(&place(&scratch)).config(), first.config());
    assert!(place(&scratch).join("mine.txt").exists());
    refuses!(force(&plan(&donor, &second), &place(&scratch)), Error::OutputRefused { reason, .. }
        if reason == "holds mine.txt, which shrink did not write");
    assert_eq!(reopen(&place(&scratch)).config(), first.config());

    std::fs::remove_file(place(&scratch).join("mine.txt")).expect("it goes");
    force(&plan(&donor, &second), &place(&scratch)).expect("it is replaced");
    assert_eq!(reopen(&place(&scratch)).config(), second.config());
    assert_eq!(scratch.names(), ["converted"], "and nothing stands beside the new one");
}

#[test]
fn a_folder_is_replaced_by_its_list_of_files_and_without_one_by_their_names() {
    let donor = open("llama");
    let factors = exact(&donor);
    let scratch = Scratch::empty();
    let out = place(&scratch);
    let extra = vec![("notes.txt".to_owned(), b"of the one who wrote the folder".to_vec())];
    let plan = FolderPlan { extra, max_shard_bytes: 20_000, ..plan(&donor, &factors) };
    write(&plan, &out).expect("shards, their index, and a file of the caller's");
    force(&plan, &out).expect("all of it is listed");
    let record = out.join("shrink.json");
    let listed = std::fs::read(&record).expect("a record");

    // A folder inside, a file that takes the place of a listed one's folder, and a link are nobody's that was listed.
    std::fs::create_dir(out.join("more")).expect("a folder");
    refuses!(force(&plan, &out), Error::OutputRefused { reason, .. } if reason.contains("holds more"));
    std::fs::remove_dir(out.join("more")).expect("it goes");
    std::fs::remove_file(out.join("notes.txt")).expect("it goes");
    std::os::unix::fs::symlink("config.json", out.join("notes.txt")).expect("a link");
    refuses!(force(&plan, &out), Error::OutputRefused { reason, .. } if reason.contains("holds notes.txt"));
    std::fs::remove_file(out.join("notes.txt")).expect("it goes");

    // As older folders have it: a record without a list.
    std::fs::write(&record, "{\"method\": \"separate\"}").expect("a record");
    std::fs::write(out.join("notes.txt"), "of a name that shrink does not give").expect("a file");
    refuses!(force(&plan, &out), Error::OutputRefused { reason, .. } if reason.contains("holds notes.txt"));
    std::fs::remove_file(out.join("notes.txt")).expect("it goes");
    std::fs::remove_file(&record).expect("it goes");
    refuses!(force(&plan, &out), Error::OutputRefused { reason, .. } if reason.contains("has no shrink.json"));
    std::fs::write(&record, "{\"method\": \"separate\"}").expect("a record");
    force(&plan, &out).expect("every name is one that shrink gives");
    assert_eq!(std::fs::read(&record).expect("a record"), listed);
}

#[test]
fn a_folder_that_holds_an_input_is_never_replaced() {
    let donor = open("llama");
    let factors = exact(&donor);
    let scratch = Scratch::empty();
    let out = place(&scratch);
    write(&plan(&donor, &factors), &out).expect("an earlier folder");
    let link = scratch.path("link");
    std::os::unix::fs::symlink(&out, &link).expect("a link");
    let beside = |out: &Path, input: &Path| {
        Output::prepare_beside(out, Existing::Replace, donor.folder(), &[input.to_path_buf()])
    };
    for input in [out.clone(), out.join("tokenizer.json"), link.clone(), link.join("config.json")] {
        for place in [&out, &link] {
            refuses!(beside(place, &input), Error::OutputRefused { reason, .. }
                if reason.starts_with("is or holds ") && reason.ends_with("which this command needs"));
        }
    }
    drop(beside(&out, &scratch.path("converted.txt")).expect("there is no such input"));
    drop(beside(&out, scratch.folder()).expect("an input may hold the output"));
    assert_eq!(scratch.names(), ["converted", "link"]);
    assert_eq!(reopen(&out).config(), factors.config());
}

#[test]
fn force_replaces_only_what_shrink_wrote() {
    let donor = open("llama");
    let factors = exact(&donor);
    let scratch = Scratch::empty();
    scratch.write("converted", "a file");
    refuses!(write(&plan(&donor, &factors), &place(&scratch)), Error::OutputExists { .. });
    refuses!(force(&plan(&donor, &factors), &place(&scratch)), Error::OutputRefused { .. });
    assert_eq!(std::fs::read_to_string(place(&scratch)).expect("it is still there"), "a file");

    let scratch = Scratch::of("gpt2");
    let before = scratch.names();
    refuses!(force(&plan(&donor, &factors), scratch.folder()), Error::OutputRefused { .. });
    assert_eq!(scratch.names(), before, "a model of somebody else is left alone");

    let scratch = Scratch::empty();
    std::fs::create_dir(place(&scratch)).expect("an empty folder");
    force(&plan(&donor, &factors), &place(&scratch)).expect("an empty folder is no loss");
    assert_eq!(scratch.names(), ["converted"]);
}

#[test]
fn an_output_that_overlaps_the_donor_is_refused() {
    let scratch = Scratch::empty();
    let first = exact(&open("gpt2"));
    let donor = open("gpt2");
    let once = written(&scratch, &plan(&donor, &first));
    let nothing = WeightMap::new(first.config().clone());
    for out in [place(&scratch), place(&scratch).join("inside"), scratch.folder().to_path_buf()] {
        refuses!(force(&plan(&once, &nothing), &out), Error::OutputRefused { .. });
        assert_eq!(reopen(&place(&scratch)).config(), first.config(), "{}", out.display());
    }
}

#[test]
fn a_place_without_a_name_is_refused_before_any_work() {
    let donor = open("llama");
    for out in [".", "..", "/", "a/.."] {
        refuses!(
            Output::prepare(Path::new(out), Existing::Replace, donor.folder()),
            Error::OutputRefused { path, .. } if path == Path::new(out)
        );
    }
}

#[test]
fn a_folder_that_appears_meanwhile_is_not_replaced() {
    let donor = open("llama");
    let factors = exact(&donor);
    let scratch = Scratch::empty();
    let output = Output::prepare(&place(&scratch), Existing::Keep, donor.folder()).expect("nothing is there");
    let earlier = random(&donor, 4, 4, 1);
    write(&plan(&donor, &earlier), &place(&scratch)).expect("somebody is faster");
    let late = write_folder(&plan(&donor, &factors), output, &|_, _| {});
    refuses!(late, Error::OutputExists { .. });
    assert_eq!(reopen(&place(&scratch)).config(), earlier.config());
    assert_eq!(scratch.names(), ["converted"]);
}

/// Writes a plan that must fail, over nothing and over an earlier folder, and looks at what is left.
fn assert_fails_cleanly(plan: &FolderPlan<'_>, is_expected: impl Fn(&Error) -> bool) {
    let scratch = Scratch::empty();
    let error = write(plan, &place(&scratch)).expect_err("it fails");
    assert!(is_expected(&error), "{error:?}");
    assert!(error.hint().is_some(), "{error}");
    assert_eq!(scratch.names(), [""; 0], "nothing is left behind");

    let donor = open("llama");
    let earlier = exact(&donor);
    write(&super::plan(&donor, &earlier), &place(&scratch)).expect("an earlier folder");
    let error = force(plan, &place(&scratch)).expect_err("it fails again");
    assert!(is_expected(&error), "{error:?}");
    assert_eq!(scratch.names(), ["converted"], "nothing stands beside it");
    assert_eq!(reopen(&place(&scratch)).config(), earlier.config(), "and it is as it was");
}

#[test]
fn a_donor_that_is_not_finite_is_not_written() {
    for weight in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let (_scratch, donor) = donor_with(weight);
        let factors = exact(&donor);
        for dtype in [None, Some(Dtype::F16), Some(Dtype::Bf16)] {
            let plan = FolderPlan { dtype, max_shard_bytes: 20_000, ..plan(&donor, &factors) };
            assert_fails_cleanly(
                &plan,
                |error| matches!(error, Error::NotFinite { key, index: 7, .. } if key == "model.layers.1.mlp.up_proj.weight"),
            );
        }
    }
}

#[test]
fn a_factor_that_is_not_finite_is_not_written() {
    let donor = open("llama");
    for value in [f32::NAN, f32::INFINITY] {
        for dtype in [None, Some(Dtype::F16)] {
            let mut factors = random(&donor, 4, 4, 1);
            let mut data = vec![0.5; 4 * donor.config().d_model];
            data[9] = value;
            factors.insert_layer(2, LayerSlot::DownValue, Matrix::new(4, donor.config().d_model, data));
            assert_fails_cleanly(&FolderPlan { dtype, ..plan(&donor, &factors) }, |error| {
                matches!(error, Error::NotFinite { key, index: 9, .. }
                    if key == "model.layers.2.self_attn.mla.w_down_v")
            });
        }
    }
}

#[test]
fn a_weight_beyond_f16_is_an_error_and_fits_bf16() {
    let (_scratch, donor) = donor_with(70_000.0);
    let factors = exact(&donor);
    let halves = FolderPlan { dtype: Some(Dtype::F16), ..plan(&donor, &factors) };
    assert_fails_cleanly(&halves, |error| {
        let hint = error.hint().expect("a hint");
        matches!(error, Error::Overflow { key, value, dtype: "f16" }
            if key == "model.layers.1.mlp.up_proj.weight" && *value == 70_000.0 && hint.contains("bf16"))
    });
    for dtype in [None, Some(Dtype::F32), Some(Dtype::Bf16)] {
        let scratch = Scratch::empty();
        written(&scratch, &FolderPlan { dtype, ..plan(&donor, &factors) });
    }
}

#[test]
fn a_factor_beyond_f16_is_an_error() {
    let donor = open("llama");
    let mut factors = random(&donor, 4, 4, 1);
    factors.insert_layer(0, LayerSlot::DownKey, Matrix::new(4, 32, vec![-65_520.0; 128]));
    assert_fails_cleanly(
        &FolderPlan { dtype: Some(Dtype::F16), ..plan(&donor, &factors) },
        |error| matches!(error, Error::Overflow { value, .. } if *value == -65_520.0),
    );
}

#[test]
fn weights_cut_short_after_they_were_opened_are_an_error() {
    let (scratch, donor) = donor_with(0.0);
    let factors = exact(&donor);
    let file =
        std::fs::OpenOptions::new().write(true).open(scratch.path("model.safetensors")).expect("the file");
    file.set_len(20_000).expect("it is cut");
    assert_fails_cleanly(&plan(&donor, &factors), |error| matches!(error, Error::Io { action: "read", .. }));
    assert!(mla_core::Decoder::load(&donor, &burn::tensor::Device::flex()).is_err());
}

#[test]
fn a_place_that_cannot_be_made_is_named() {
    let donor = open("llama");
    let factors = exact(&donor);
    let scratch = Scratch::empty();
    scratch.write("file", "");
    let inside = scratch.path("file").join("converted");
    refuses!(write(&plan(&donor, &factors), &inside), Error::Io { action: "create", .. });
    assert_eq!(scratch.names(), ["file"]);
}
