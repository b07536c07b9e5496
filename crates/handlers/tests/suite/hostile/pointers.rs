//! Git LFS pointers in the place of files, as a clone without Git LFS has them.

use handlers::{Error, Existing, Output, Tokenizer};

use super::refuses;
use crate::scratch::Scratch;

const POINTER: &str = "version https://git-lfs.github.com/spec/v1\n\
                       oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 9085657\n";

fn assert_is_named(error: &Error, file: &str) {
    assert!(matches!(error, Error::LfsPointer { path } if path.ends_with(file)), "{file}: {error:?}");
    assert!(error.to_string().ends_with("a Git LFS pointer, not the file"), "{error}");
    assert!(error.hint().is_some_and(|hint| hint.contains("git lfs pull")), "{file}");
}

#[test]
fn whatever_a_model_is_opened_from_may_be_a_pointer() {
    for file in ["config.json", "model.safetensors", "generation_config.json"] {
        let scratch = Scratch::of("llama");
        scratch.write(file, POINTER);
        assert_is_named(&scratch.open().expect_err(file), file);
    }
    let scratch = Scratch::of("llama");
    scratch.shard(2);
    scratch.write("part-1.safetensors", POINTER);
    assert_is_named(&scratch.open().expect_err("a shard"), "part-1.safetensors");
    scratch.write("model.safetensors.index.json", POINTER);
    assert_is_named(&scratch.open().expect_err("an index"), "model.safetensors.index.json");
}

#[test]
fn a_tokenizer_may_be_a_pointer() {
    let scratch = Scratch::of("llama");
    scratch.write("tokenizer.json", POINTER);
    assert_is_named(&Tokenizer::open(scratch.folder()).expect_err("a pointer"), "tokenizer.json");
}

#[test]
fn a_pointer_is_not_carried_into_an_output() {
    for file in ["tokenizer.model", "tokenizer.json", "vocab.json", "LICENSE.pdf"] {
        let (scratch, elsewhere) = (Scratch::of("llama"), Scratch::empty());
        scratch.write(file, POINTER);
        let output = Output::prepare(&elsewhere.path("out"), Existing::Keep, scratch.folder());
        assert_is_named(&output.expect_err(file), file);
        assert_eq!(elsewhere.names(), [""; 0]);
    }
}

#[test]
fn weights_that_only_begin_like_a_pointer_are_damaged() {
    let scratch = Scratch::of("llama");
    scratch.write("model.safetensors", POINTER.repeat(20));
    refuses!(scratch.open(), Error::BadSafetensors { .. });
}
