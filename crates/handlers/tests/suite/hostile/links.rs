//! Links in a donor's folder: followed where they lead to the model's own files, and nowhere else.
#![cfg(unix)]

use std::os::unix::fs::symlink;
use std::path::Path;

use handlers::{Error, Existing, Model, Output, Registry, read_companion, write_folder};

use super::refuses;
use crate::conversion::{exact, section};
use crate::scratch::Scratch;

/// Converts a folder and returns what was written.
fn convert(donor: &Path, out: &Path) -> Result<(), Error> {
    let model = Model::open(donor, &Registry::builtin())?;
    let factors = exact(&model);
    let plan = handlers::FolderPlan {
        donor: &model,
        section: section(&factors),
        factors: &factors,
        dtype: None,
        extra: Vec::new(),
        max_shard_bytes: u64::MAX,
    };
    write_folder(&plan, Output::prepare(out, Existing::Keep, donor)?, &|_, _| {}).map(drop)
}

#[test]
fn a_link_to_a_file_of_somebody_else_is_not_followed_into_an_output() {
    let (secret, elsewhere) = (Scratch::empty(), Scratch::empty());
    secret.write("key", "nobody else's business");
    for name in ["LICENSE", "NOTICE.txt", "tokenizer_config.json"] {
        let donor = Scratch::of("llama");
        drop(std::fs::remove_file(donor.path(name)));
        symlink(secret.path("key"), donor.path(name)).expect("a link");
        refuses!(convert(donor.folder(), &elsewhere.path("out")), Error::LinkOutside { path, .. } if path.ends_with(name));
        assert_eq!(elsewhere.names(), [""; 0], "nothing is left behind");
    }
    // A link that leads nowhere is no file.
    let donor = Scratch::of("llama");
    symlink(secret.path("nothing"), donor.path("LICENSE")).expect("a link");
    convert(donor.folder(), &elsewhere.path("out")).expect("it is written");
    assert!(!elsewhere.path("out/LICENSE").exists());
}

#[test]
fn a_card_is_read_only_where_it_is_the_models() {
    let (secret, donor) = (Scratch::empty(), Scratch::of("llama"));
    secret.write("key", "nobody else's business");
    assert_eq!(read_companion(donor.folder(), "README.md").expect("there is none"), None);
    donor.write("README.md", "a card");
    assert_eq!(read_companion(donor.folder(), "README.md").expect("a card").as_deref(), Some(&b"a card"[..]));
    donor.remove("README.md");
    symlink(secret.path("key"), donor.path("README.md")).expect("a link");
    refuses!(read_companion(donor.folder(), "README.md"), Error::LinkOutside { target, .. }
        if *target == secret.path("key").canonicalize().expect("the key"));
}

#[test]
fn a_snapshot_of_the_hubs_cache_is_links_and_works() {
    let (files, cache) = (Scratch::of("llama"), Scratch::empty());
    let repo = cache.path("models--org--tiny");
    let (blobs, snapshot) = (repo.join("blobs"), repo.join("snapshots/0123"));
    std::fs::create_dir_all(&blobs).expect("a folder");
    std::fs::create_dir_all(&snapshot).expect("a folder");
    files.write("LICENSE", "the licence");
    for name in files.names() {
        std::fs::copy(files.path(&name), blobs.join(format!("hash-{name}"))).expect("a copy");
        symlink(Path::new("../../blobs").join(format!("hash-{name}")), snapshot.join(&name)).expect("a link");
    }
    convert(&snapshot, &cache.path("out")).expect("it is written");
    assert_eq!(std::fs::read_to_string(cache.path("out/LICENSE")).expect("a licence"), "the licence");

    // A configuration that was edited in place is a file beside links.
    std::fs::remove_file(snapshot.join("config.json")).expect("the link goes");
    std::fs::copy(files.path("config.json"), snapshot.join("config.json")).expect("a copy");
    convert(&snapshot, &cache.path("again")).expect("it is written");
    assert!(cache.path("again/tokenizer.json").exists());
}

#[test]
fn a_folder_of_links_into_one_other_is_that_folder() {
    let (files, links) = (Scratch::of("llama"), Scratch::empty());
    files.write("LICENSE", "the licence");
    std::fs::create_dir(links.path("farm")).expect("a folder");
    for name in files.names() {
        symlink(files.path(&name), links.path("farm").join(&name)).expect("a link");
    }
    symlink(files.folder(), links.path("linked")).expect("a link");
    for donor in ["farm", "linked"] {
        let out = links.path(&format!("out-{donor}"));
        convert(&links.path(donor), &out).expect("it is written");
        assert_eq!(std::fs::read_to_string(out.join("LICENSE")).expect("a licence"), "the licence");
    }
}
