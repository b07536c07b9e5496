//! `model.safetensors.index.json`: shards that lack, lie, or lie outside the folder.

use handlers::Error;
use serde_json::{Map, Value, json};

use super::refuses;
use crate::scratch::{Scratch, read_tensors, write_tensors};
use crate::twin::{Golden, load, logits, open};

const KEY: &str = "model.norm.weight";

fn sharded() -> (Scratch, Map<String, Value>) {
    let scratch = Scratch::of("llama");
    let places = scratch.shard(3);
    (scratch, places)
}

#[test]
fn shards_open_as_one_file_does() {
    let (scratch, _) = sharded();
    let model = scratch.open().expect("a model");
    assert_eq!(model.checkpoint().files().count(), 3);
    assert_eq!(
        model.checkpoint().file_bytes(),
        model.checkpoint().files().map(|f| f.metadata().expect("a file").len()).sum::<u64>()
    );
    let ids = &Golden::of("llama").ids("prefill.ids")[0];
    assert_eq!(logits(&load(&model), ids), logits(&load(&open("llama")), ids));
}

#[test]
fn missing_shards_are_all_named() {
    let (scratch, _) = sharded();
    scratch.remove("part-0.safetensors");
    scratch.remove("part-2.safetensors");
    refuses!(scratch.open(), Error::MissingShards { missing, .. }
        if *missing == ["part-0.safetensors", "part-2.safetensors"]);
}

#[test]
fn an_index_reaches_no_file_outside_its_folder() {
    let (scratch, places) = sharded();
    std::fs::create_dir(scratch.path("sub")).expect("a folder");
    std::fs::copy(scratch.path("part-0.safetensors"), scratch.path("sub/part-0.safetensors"))
        .expect("a copy");
    for name in [
        "../../etc/passwd",
        "/etc/passwd",
        "..",
        ".",
        "",
        "sub/part-0.safetensors",
        "./part-0.safetensors",
        "part-0.safetensors/",
        "../part-0.safetensors",
    ] {
        let mut places = places.clone();
        places.insert(KEY.into(), name.into());
        scratch.index(places);
        refuses!(scratch.open(), Error::BadIndex { reason, .. } if reason.contains("not a file name"));
    }
}

#[test]
fn a_shard_that_is_no_file_name_is_refused() {
    let (scratch, places) = sharded();
    for value in [json!(1), json!(null), json!(["part-0.safetensors"])] {
        let mut places = places.clone();
        places.insert(KEY.into(), value);
        scratch.index(places);
        refuses!(scratch.open(), Error::BadIndex { reason, .. } if reason.contains(KEY));
    }
}

#[test]
fn an_entry_without_a_tensor_is_missed_only_by_who_needs_it() {
    let (scratch, mut places) = sharded();
    let shard = places[KEY].clone();
    for key in [
        "model.layers.0.self_attn.rotary_emb.inv_freq",
        "model.layers.2.self_attn.rotary_emb.inv_freq",
        "mtp.fc.weight",
    ] {
        places.insert(key.into(), shard.clone());
    }
    scratch.index(places.clone());
    let model = scratch.open().expect("nobody needs them");
    assert_eq!(model.unused(), [""; 0]);

    let path = scratch.path(shard.as_str().expect("a name"));
    let mut tensors = read_tensors(&path);
    tensors.remove(KEY);
    write_tensors(&path, &tensors);
    let error = scratch.open().expect_err("this one is needed");
    assert!(matches!(&error, Error::MissingTensors { keys, .. } if *keys == [KEY]), "{error:?}");
    assert!(error.hint().is_some_and(|hint| hint.contains("shard")));
}

#[test]
fn a_tied_head_that_the_index_names_and_no_shard_has_is_not_missed() {
    let scratch = Scratch::of("qwen2");
    let mut places = scratch.shard(2);
    places.insert("lm_head.weight".into(), "part-1.safetensors".into());
    scratch.index(places);
    let model = scratch.open().expect("the embedding is the head");
    let ids = &Golden::of("qwen2").ids("prefill.ids")[0];
    assert_eq!(logits(&load(&model), ids), logits(&load(&open("qwen2")), ids));
}

#[test]
fn a_tensor_that_lies_in_another_shard_than_said_is_found() {
    let (scratch, mut places) = sharded();
    let right = places[KEY].clone();
    let other = if right == "part-0.safetensors" { "part-1.safetensors" } else { "part-0.safetensors" };
    places.insert(KEY.into(), other.into());
    scratch.index(places);
    let ids = &Golden::of("llama").ids("prefill.ids")[0];
    let expected = logits(&load(&open("llama")), ids);
    assert_eq!(logits(&load(&scratch.open().expect("a model")), ids), expected);
}

/// Puts another copy of a tensor, all zeros, into a shard.
fn supersede(scratch: &Scratch, key: &str, shard: &str) {
    let mut tensors = read_tensors(&scratch.path(shard));
    let (_, mut raw) = scratch
        .names()
        .into_iter()
        .filter(|name| name.ends_with(".safetensors"))
        .find_map(|name| read_tensors(&scratch.path(&name)).remove_entry(key))
        .expect("the tensor");
    raw.bytes.fill(0);
    tensors.insert(key.to_owned(), raw);
    write_tensors(&scratch.path(shard), &tensors);
}

#[test]
fn of_a_tensor_in_two_shards_the_copy_counts_that_the_index_names() {
    let key = "model.layers.0.self_attn.o_proj.weight";
    let ids = &Golden::of("llama").ids("prefill.ids")[0];
    let expected = logits(&load(&open("llama")), ids);
    // The superseded copy lies before the right one in the order of the files, and behind it.
    for (place, name) in [(0, "a"), (2, "z")] {
        let (scratch, mut places) = sharded();
        let right = places[key].as_str().expect("a name").to_owned();
        let shard = format!("{name}.safetensors");
        std::fs::rename(scratch.path(&format!("part-{place}.safetensors")), scratch.path(&shard))
            .expect("a move");
        for held in places.values_mut().filter(|held| **held == format!("part-{place}.safetensors")) {
            *held = shard.clone().into();
        }
        let right = if right == format!("part-{place}.safetensors") { shard.clone() } else { right };
        let other = if right == shard { "part-1.safetensors".to_owned() } else { shard };
        supersede(&scratch, key, &other);
        scratch.index(places.clone());
        assert_eq!(logits(&load(&scratch.open().expect("a model")), ids), expected, "{right} before {other}");
        places.insert(key.into(), other.into());
        scratch.index(places);
        assert_ne!(logits(&load(&scratch.open().expect("a model")), ids), expected, "the index decides");
    }
}

#[test]
fn a_tensor_in_two_shards_of_which_the_index_names_none_is_refused() {
    let (scratch, mut places) = sharded();
    let right = places[KEY].as_str().expect("a name").to_owned();
    let other = if right == "part-0.safetensors" { "part-1.safetensors" } else { "part-0.safetensors" };
    supersede(&scratch, KEY, other);
    places.shift_remove(KEY);
    scratch.index(places);
    refuses!(scratch.open(), Error::TwoCopies { key, shards, .. }
        if key == KEY && shards.contains(&right) && shards.contains(&other.to_owned()));
}

/// Replaces the index by names that tell how many shards there are.
fn numbered() -> Scratch {
    let (scratch, _) = sharded();
    for number in 0..3 {
        let name = format!("model-0000{}-of-00003.safetensors", number + 1);
        std::fs::rename(scratch.path(&format!("part-{number}.safetensors")), scratch.path(&name))
            .expect("a move");
    }
    scratch.remove("model.safetensors.index.json");
    scratch
}

#[test]
fn a_whole_set_of_numbered_shards_needs_no_index_and_is_noted() {
    let scratch = numbered();
    let model = scratch.open().expect("a model");
    assert_eq!(model.checkpoint().files().count(), 3);
    let notes = model.notes();
    assert!(notes.len() == 1 && notes[0].contains("index.json") && notes[0].contains('3'), "{notes:?}");
    let ids = &Golden::of("llama").ids("prefill.ids")[0];
    assert_eq!(logits(&load(&model), ids), logits(&load(&open("llama")), ids));
    assert_eq!(open("llama").notes(), [""; 0], "an ordinary folder has nothing to say");
}

#[test]
fn a_set_of_numbered_shards_names_what_it_lacks() {
    let scratch = numbered();
    scratch.remove("model-00001-of-00003.safetensors");
    scratch.remove("model-00003-of-00003.safetensors");
    refuses!(scratch.open(), Error::IncompleteShards { missing, found, .. }
        if *missing == ["model-00001-of-00003.safetensors", "model-00003-of-00003.safetensors"] && found.len() == 1);
}

#[test]
fn a_tensor_in_two_shards_without_an_index_is_refused() {
    let scratch = numbered();
    supersede(&scratch, KEY, "model-00001-of-00003.safetensors");
    supersede(&scratch, KEY, "model-00002-of-00003.safetensors");
    refuses!(scratch.open(), Error::TwoCopies { key, .. } if key == KEY);
}

#[test]
fn safetensors_of_another_name_are_named() {
    for (name, word) in
        [("consolidated.safetensors", "model.safetensors"), ("adapter_model.safetensors", "merge")]
    {
        let scratch = Scratch::of("llama");
        std::fs::rename(scratch.path("model.safetensors"), scratch.path(name)).expect("a move");
        let error = scratch.open().expect_err("it could be anything");
        assert!(matches!(&error, Error::NoWeights { others, .. } if *others == [name]), "{error:?}");
        assert!(error.hint().is_some_and(|hint| hint.contains(word)), "{name}");
    }
}

#[test]
fn a_tensor_in_no_shard_is_missing() {
    let (scratch, places) = sharded();
    let shard = scratch.path(places[KEY].as_str().expect("a name"));
    let mut tensors = read_tensors(&shard);
    tensors.remove(KEY);
    write_tensors(&shard, &tensors);
    let mut places = places;
    places.shift_remove(KEY);
    scratch.index(places);
    refuses!(scratch.open(), Error::MissingTensors { keys, .. } if *keys == [KEY]);
}

#[test]
fn an_index_that_is_none_is_refused() {
    let (scratch, _) = sharded();
    let index = "model.safetensors.index.json";
    scratch.write(index, "{");
    refuses!(scratch.open(), Error::Json { path, .. } if path.ends_with(index));
    scratch.write(index, "{}");
    refuses!(scratch.open(), Error::MissingField { field, path } if field == "weight_map" && path.ends_with(index));
    scratch.write(index, "{\"weight_map\": []}");
    refuses!(scratch.open(), Error::BadField { field, .. } if field == "weight_map");
    scratch.write(index, "{\"weight_map\": {}}");
    refuses!(scratch.open(), Error::BadIndex { .. });
}

#[test]
fn a_damaged_shard_is_named() {
    let (scratch, _) = sharded();
    let shard = std::fs::read(scratch.path("part-1.safetensors")).expect("a shard");
    scratch.write("part-1.safetensors", &shard[..shard.len() / 2]);
    refuses!(scratch.open(), Error::BadSafetensors { path, .. } if path.ends_with("part-1.safetensors"));
    scratch.remove("part-1.safetensors");
    std::fs::create_dir(scratch.path("part-1.safetensors")).expect("a folder");
    refuses!(scratch.open(), Error::Io { path, .. } if path.ends_with("part-1.safetensors"));
}
