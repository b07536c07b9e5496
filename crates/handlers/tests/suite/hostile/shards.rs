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
fn a_tensor_that_its_shard_lacks_is_named() {
    let (scratch, places) = sharded();
    let right = places[KEY].clone();
    for other in ["part-0.safetensors", "part-1.safetensors", "part-2.safetensors"] {
        if right == other {
            continue;
        }
        let mut places = places.clone();
        places.insert(KEY.into(), other.into());
        scratch.index(places);
        refuses!(scratch.open(), Error::BadIndex { reason, .. } if reason.contains(KEY) && reason.contains(other));
    }
    let mut places = places;
    places.insert("invented".into(), right);
    scratch.index(places);
    refuses!(scratch.open(), Error::BadIndex { reason, .. } if reason.contains("invented"));
}

#[test]
fn a_tensor_in_two_shards_is_refused() {
    let (scratch, places) = sharded();
    let mut tensors = read_tensors(&scratch.path("part-0.safetensors"));
    let (key, raw) = read_tensors(&scratch.path("part-2.safetensors")).pop_first().expect("a tensor");
    assert_eq!(places[&key], "part-2.safetensors");
    tensors.insert(key.clone(), raw);
    write_tensors(&scratch.path("part-0.safetensors"), &tensors);
    refuses!(scratch.open(), Error::BadSafetensors { reason, .. } if reason.contains(&key));
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
