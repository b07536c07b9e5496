//! Models and data sets fetched from a hub that runs in the test, with the faults that hubs and lines have.

mod early;
mod faults;
mod server;
mod stale;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use handlers::hub::{Hub, HubError, HubSettings, ModelFolder, Need};
use server::{COMMIT, TestHub, sha256};
use tempfile::TempDir;

const MODEL: &str = "org/tiny";

fn large(seed: usize, len: usize) -> Vec<u8> {
    (0..len).map(|i| ((i * 31 + seed) % 251) as u8).collect()
}

fn weights() -> Vec<u8> {
    large(7, 50_000)
}

fn model_files() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("README.md", b"# tiny".to_vec()),
        ("config.json", br#"{"model_type": "llama"}"#.to_vec()),
        ("generation_config.json", b"{}".to_vec()),
        ("model.safetensors", weights()),
        ("pytorch_model.bin", large(8, 50_000)),
        ("tokenizer.json", br#"{"version": "1.0"}"#.to_vec()),
    ]
}

fn tiny_hub() -> TestHub {
    TestHub::new("models/org/tiny", &model_files())
}

/// A cache folder and settings that point to it.
struct Client {
    folder: TempDir,
    settings: HubSettings,
}

impl Client {
    fn new(hub: &TestHub) -> Self {
        Self::at(&hub.endpoint)
    }

    fn at(endpoint: &str) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let settings = HubSettings {
            endpoint: endpoint.to_owned(),
            cache: Some(folder.path().to_owned()),
            token: None,
            offline: false,
            retries: 3,
            retry_pause: Duration::ZERO,
        };
        Self { folder, settings }
    }

    fn resolve(&self, model: &str, need: Need) -> Result<ModelFolder, HubError> {
        Hub::new(self.settings.clone()).resolve(model, need, &())
    }

    fn everything(&self) -> Result<ModelFolder, HubError> {
        self.resolve(MODEL, Need::Everything)
    }

    fn repo(&self) -> PathBuf {
        self.folder.path().join("models--org--tiny")
    }

    /// Where the weights lie while they are incomplete.
    fn part(&self) -> PathBuf {
        self.repo().join("blobs").join(format!("{}.incomplete", sha256(&weights())))
    }

    fn leave_part(&self, content: &[u8]) {
        fs::create_dir_all(self.repo().join("blobs")).expect("a folder of blobs");
        fs::write(self.part(), content).expect("a part");
    }
}

fn assert_weights_are_whole(model: &ModelFolder) {
    let found = fs::read(model.path.join("model.safetensors")).expect("the weights");
    assert!(found == weights(), "the weights differ: {} bytes", found.len());
}

fn whole(file: &str) -> (String, Option<String>) {
    (file.to_owned(), None)
}

#[test]
fn a_model_is_fetched_once_and_only_what_is_needed_of_it() {
    let hub = tiny_hub();
    let client = Client::new(&hub);
    let model = client.everything().expect("a model");
    assert_eq!(model.id.as_deref(), Some(MODEL));
    assert_eq!(model.revision.as_deref(), Some(COMMIT));
    assert_eq!(model.path, client.repo().join("snapshots").join(COMMIT));
    assert_weights_are_whole(&model);
    let gets = hub.take_gets();
    let needed =
        ["config.json", "tokenizer.json", "README.md", "generation_config.json", "model.safetensors"];
    assert_eq!(gets, needed.map(whole), "the weights come last");
    assert_eq!(fs::read_to_string(client.repo().join("refs/main")).expect("a reference"), COMMIT);
    assert!(client.repo().join("blobs").join(sha256(&weights())).is_file());

    assert_eq!(client.everything().expect("the same model"), model);
    let log = hub.take_log();
    assert_eq!(log.len(), 1, "one question after the branch, nothing more: {log:?}");
}

#[test]
fn a_description_of_a_model_needs_its_configuration_alone() {
    let hub = tiny_hub();
    let client = Client::new(&hub);
    let model = client.resolve(MODEL, Need::ConfigOnly).expect("a configuration");
    assert_eq!(hub.take_gets(), [whole("config.json")]);
    assert!(model.path.join("config.json").is_file());
}

#[test]
fn an_offline_hub_serves_the_cache_and_never_asks_the_network() {
    let hub = tiny_hub();
    let mut client = Client::new(&hub);
    let model = client.everything().expect("a model");
    hub.take_log();
    client.settings.offline = true;
    for name in [MODEL, &format!("{MODEL}@{COMMIT}")] {
        let again = client.resolve(name, Need::Everything).expect("the cached model");
        assert_eq!(again.path, model.path);
    }
    fs::remove_file(model.path.join("tokenizer.json")).expect("the tokenizer goes");
    match client.everything() {
        Err(HubError::NotCached { file, .. }) => assert_eq!(file, "tokenizer.json"),
        other => panic!("{other:?}"),
    }
    client.resolve(MODEL, Need::ConfigOnly).expect("the configuration is still there");
    let error = client.resolve("org/other", Need::ConfigOnly).expect_err("nothing is cached of it");
    assert!(error.hint().is_some_and(|hint| hint.contains("HF_HUB_OFFLINE")), "{error}");
    assert_eq!(hub.take_log().len(), 0);
}

#[test]
fn a_cache_that_another_program_filled_serves_offline() {
    let hub = tiny_hub();
    let mut client = Client::new(&hub);
    client.settings.offline = true;
    let snapshot = client.repo().join("snapshots").join(COMMIT);
    fs::create_dir_all(&snapshot).expect("a snapshot");
    fs::create_dir_all(client.repo().join("refs")).expect("references");
    fs::write(client.repo().join("refs/main"), COMMIT).expect("a reference");
    for file in ["config.json", "tokenizer.json", "1.safetensors", "2.safetensors"] {
        fs::write(snapshot.join(file), "{}").expect("a file");
    }
    let index = r#"{"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}"#;
    fs::write(snapshot.join("model.safetensors.index.json"), index).expect("an index");
    assert_eq!(client.everything().expect("a model").path, snapshot);
    fs::remove_file(snapshot.join("2.safetensors")).expect("a shard goes");
    match client.everything() {
        Err(HubError::NotCached { file, .. }) => assert_eq!(file, "2.safetensors"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_unreachable_hub_is_named_unless_the_cache_serves() {
    let hub = tiny_hub();
    let client = Client::new(&hub);
    let model = client.everything().expect("a model");
    let endpoint = hub.endpoint.clone();
    drop(hub);
    assert_eq!(client.everything().expect("the cached model"), model);
    match client.resolve("org/other", Need::ConfigOnly) {
        Err(HubError::Unreachable { endpoint: named, .. }) => assert_eq!(named, endpoint),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_full_commit_hash_that_is_cached_asks_nobody() {
    let hub = tiny_hub();
    let client = Client::new(&hub);
    let name = format!("{MODEL}@{COMMIT}");
    let model = client.resolve(&name, Need::Everything).expect("a model");
    hub.take_log();
    assert_eq!(client.resolve(&name, Need::Everything).expect("the cached model"), model);
    assert_eq!(hub.take_log().len(), 0);
    assert!(!client.repo().join("refs").exists(), "a commit needs no reference");
}

#[test]
fn what_the_hub_lacks_is_named() {
    let hub = tiny_hub();
    let client = Client::new(&hub);
    match client.resolve("org/none", Need::ConfigOnly) {
        Err(HubError::RepoNotFound { id, endpoint }) => {
            assert_eq!((id.as_str(), &endpoint), ("org/none", &hub.endpoint))
        }
        other => panic!("{other:?}"),
    }
    match client.resolve("org/tiny@v9", Need::ConfigOnly) {
        Err(HubError::RevisionNotFound { revision, .. }) => assert_eq!(revision, "v9"),
        other => panic!("{other:?}"),
    }
    hub.state().files.remove("tokenizer.json");
    hub.take_log();
    match client.everything() {
        Err(HubError::FileNotFound { file, .. }) => assert_eq!(file, "tokenizer.json"),
        other => panic!("{other:?}"),
    }
    assert_eq!(hub.take_gets(), [whole("config.json")], "no weights are fetched in vain");
}

#[test]
fn a_vocabulary_with_its_merges_stands_for_a_tokenizer_file() {
    let hub = tiny_hub();
    hub.state().files.remove("tokenizer.json");
    hub.state().files.insert("vocab.json".into(), b"{}".to_vec());
    let client = Client::new(&hub);
    assert!(
        matches!(client.everything(), Err(HubError::FileNotFound { .. })),
        "one of the two is not enough"
    );
    hub.state().files.insert("merges.txt".into(), b"".to_vec());
    let model = client.everything().expect("a model");
    for file in ["vocab.json", "merges.txt", "model.safetensors"] {
        assert!(model.path.join(file).exists(), "{file}");
    }
}

#[test]
fn weights_that_are_not_safetensors_are_refused_before_they_are_fetched() {
    let hub = tiny_hub();
    hub.state().files.remove("model.safetensors");
    match Client::new(&hub).everything() {
        Err(HubError::NoSafetensors { model, found }) => {
            assert_eq!((model.as_str(), found), (MODEL, vec!["pytorch_model.bin".to_owned()]));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(hub.take_gets(), [whole("config.json")]);
}

#[test]
fn shards_are_those_that_the_index_names() {
    let hub = tiny_hub();
    let index = br#"{"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}"#;
    {
        let files = &mut hub.state().files;
        files.remove("model.safetensors");
        files.insert("model.safetensors.index.json".into(), index.to_vec());
        for (seed, name) in
            ["model-1.safetensors", "model-2.safetensors", "other.safetensors"].into_iter().enumerate()
        {
            files.insert(name.into(), large(seed, 3000));
        }
    }
    let client = Client::new(&hub);
    let model = client.everything().expect("a model");
    assert_eq!(fs::read(model.path.join("model-2.safetensors")).expect("a shard"), large(1, 3000));
    assert!(!model.path.join("other.safetensors").exists());
    let hostile = br#"{"weight_map": {"a": "../../../outside"}}"#;
    hub.state().files.insert("model.safetensors.index.json".into(), hostile.to_vec());
    assert!(matches!(Client::new(&hub).everything(), Err(HubError::Malformed { .. })));
}

#[test]
fn a_gated_model_asks_for_the_licence_and_a_private_one_for_the_token() {
    let hub = tiny_hub();
    let mut client = Client::new(&hub);
    hub.state().gated = true;
    let error = client.resolve(MODEL, Need::ConfigOnly).expect_err("gated");
    let page = format!("{}/{MODEL}", hub.endpoint);
    assert!(matches!(error, HubError::Gated { .. }), "{error:?}");
    assert!(error.hint().is_some_and(|hint| hint.contains(&page) && hint.contains("HF_TOKEN")));

    hub.state().gated = false;
    hub.state().token = Some("hf_right".into());
    let error = client.resolve(MODEL, Need::ConfigOnly).expect_err("hidden");
    assert!(matches!(error, HubError::RepoNotFound { .. }), "{error:?}");
    client.settings.token = Some("hf_wrong".into());
    let error = client.resolve(MODEL, Need::ConfigOnly).expect_err("a wrong token");
    assert!(matches!(error, HubError::Unauthorised { status: 401, with_token: true, .. }), "{error:?}");
    client.settings.token = Some("hf_right".into());
    client.resolve(MODEL, Need::ConfigOnly).expect("the right token");
}

#[test]
fn the_token_goes_to_the_hub_and_never_to_the_content_network() {
    let hub = tiny_hub();
    hub.state().token = Some("hf_right".into());
    let mut client = Client::new(&hub);
    client.settings.token = Some("hf_right".into());
    client.everything().expect("a model");
    let (content, hub): (Vec<_>, Vec<_>) =
        hub.take_log().into_iter().partition(|r| r.path.starts_with("/cdn/"));
    assert!(!content.is_empty() && content.iter().all(|request| request.token.is_none()));
    assert!(!hub.is_empty() && hub.iter().all(|request| request.token.as_deref() == Some("hf_right")));
}

#[test]
fn a_data_set_is_found_under_its_old_name_and_stays_in_the_cache() {
    let files = [
        ("README.md", b"# text".to_vec()),
        ("wikitext-2-raw-v1/test-00000-of-00001.parquet", large(1, 20)),
        ("wikitext-2-raw-v1/train-00001-of-00002.parquet", large(2, 2000)),
        ("wikitext-2-raw-v1/train-00000-of-00002.parquet", large(3, 2000)),
    ];
    let hub = TestHub::new("datasets/Salesforce/wikitext", &files);
    hub.state().renamed_from = Some("datasets/wikitext".into());
    let mut client = Client::new(&hub);
    let fetch = |client: &Client, subset: &str| {
        Hub::new(client.settings.clone()).dataset_files("wikitext", subset, "train", &())
    };
    let paths = fetch(&client, "wikitext-2-raw-v1").expect("the training split");
    let names: Vec<_> = paths.iter().filter_map(|path| path.file_name()?.to_str()).collect();
    assert_eq!(names, ["train-00000-of-00002.parquet", "train-00001-of-00002.parquet"]);
    assert_eq!(fs::read(&paths[0]).expect("a file"), large(3, 2000));
    match fetch(&client, "wikitext-9") {
        Err(HubError::NoSplit { found, .. }) => {
            assert_eq!(*found, ["wikitext-2-raw-v1/test-00000-of-00001.parquet"]);
        }
        other => panic!("{other:?}"),
    }
    hub.take_log();
    client.settings.offline = true;
    assert_eq!(fetch(&client, "wikitext-2-raw-v1").expect("the cached split"), paths);
    fs::remove_file(&paths[1]).expect("a file goes");
    assert!(matches!(fetch(&client, "wikitext-2-raw-v1"), Err(HubError::NotCached { .. })));
    assert_eq!(hub.take_log().len(), 0);
}

#[test]
fn a_listing_with_a_file_outside_the_repository_is_refused() {
    let hub = TestHub::new("datasets/org/text", &[("s/../../../train.parquet", large(1, 20))]);
    let client = Client::new(&hub);
    let error = Hub::new(client.settings.clone()).dataset_files("org/text", "s", "train", &());
    assert!(matches!(error, Err(HubError::Malformed { .. })), "{error:?}");
}

#[test]
fn a_local_folder_is_taken_as_it_is() {
    let client = Client::at("http://127.0.0.1:1");
    let folder = tempfile::tempdir().expect("a temporary folder");
    let resolve = |path: &Path| client.resolve(path.to_str().expect("a UTF-8 path"), Need::Everything);
    let model = resolve(folder.path()).expect("a folder");
    assert_eq!(model, ModelFolder { path: folder.path().to_owned(), id: None, revision: None });

    let missing = folder.path().join("none");
    assert!(matches!(resolve(&missing), Err(HubError::FolderMissing { path }) if path == missing));
    let file = folder.path().join("pytorch_model.bin");
    fs::write(&file, "").expect("a file");
    assert!(matches!(resolve(&file), Err(HubError::NotAFolder { .. })));
    assert!(matches!(resolve(folder.path()), Err(HubError::NoSafetensors { .. })));
    fs::write(folder.path().join("model-00001-of-00001.safetensors"), "").expect("a shard");
    resolve(folder.path()).expect("safetensors beside other weights");
}

#[test]
fn without_a_home_only_hub_models_are_out_of_reach() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let hub = Hub::new(HubSettings::from_vars(|_| None));
    hub.resolve(folder.path().to_str().expect("a UTF-8 path"), Need::Everything, &())
        .expect("a local folder");
    assert!(matches!(hub.resolve(MODEL, Need::ConfigOnly, &()), Err(HubError::NoCacheFolder)));
}
