//! Downloads over a line that breaks, stutters and lies.

use std::fs;
use std::sync::Mutex;

use handlers::hub::{DownloadObserver, Hub, HubError, Need};

use super::server::{COMMIT, sha256};
use super::{Client, MODEL, assert_weights_are_whole, tiny_hub, weights, whole};

#[test]
fn a_broken_download_goes_on_where_it_broke() {
    struct Heard(Mutex<Vec<(String, u64, u64, bool)>>);
    impl DownloadObserver for Heard {
        fn begin(&self, file: &str, bytes: u64) {
            self.0.lock().expect("no panic").push((file.to_owned(), bytes, 0, false));
        }
        fn advance(&self, bytes: u64) {
            self.0.lock().expect("no panic").last_mut().expect("a file").2 += bytes;
        }
        fn end(&self) {
            self.0.lock().expect("no panic").last_mut().expect("a file").3 = true;
        }
    }
    let hub = tiny_hub();
    hub.state().files.retain(|name, _| !["README.md", "generation_config.json"].contains(&name.as_str()));
    // Configuration and tokenizer pass; the weights break twice, once before their first byte.
    hub.state().cuts = vec![usize::MAX, usize::MAX, 20_000, 0, 10_000];
    let client = Client::new(&hub);
    let heard = Heard(Mutex::new(Vec::new()));
    let model = Hub::new(client.settings.clone()).resolve(MODEL, Need::Everything, &heard).expect("a model");
    assert_weights_are_whole(&model);
    let ranges: Vec<_> = hub.take_gets().into_iter().skip(2).map(|(_, range)| range).collect();
    let from = |start: usize| Some(format!("bytes={start}-"));
    assert_eq!(ranges, [None, from(20_000), from(20_000), from(30_000)]);
    let heard = heard.0.into_inner().expect("no panic");
    assert_eq!(heard.last(), Some(&("model.safetensors".to_owned(), 50_000, 50_000, true)));
    assert_eq!(heard.len(), 3);
}

#[test]
fn a_download_given_up_goes_on_in_the_next_run() {
    let hub = tiny_hub();
    let mut client = Client::new(&hub);
    client.settings.retries = 0;
    hub.state().cuts = vec![usize::MAX, usize::MAX, usize::MAX, usize::MAX, 12_345, 0];
    match client.everything() {
        Err(HubError::Interrupted { file, received_bytes, .. }) => {
            assert_eq!((file.as_str(), received_bytes), ("model.safetensors", 12_345));
        }
        other => panic!("{other:?}"),
    }
    assert!(!client.repo().join("refs/main").exists(), "half a model is not remembered");
    hub.take_log();
    assert_weights_are_whole(&client.everything().expect("the rest"));
    assert_eq!(hub.take_gets(), [("model.safetensors".to_owned(), Some("bytes=12345-".to_owned()))]);
}

#[test]
fn a_part_that_is_whole_already_is_not_fetched_again() {
    let hub = tiny_hub();
    let client = Client::new(&hub);
    client.leave_part(&weights());
    assert_weights_are_whole(&client.everything().expect("a model"));
    assert!(hub.take_gets().iter().all(|(file, _)| file != "model.safetensors"));
}

#[test]
fn a_part_that_is_damaged_or_too_long_is_fetched_afresh() {
    for part in [vec![1; 100], vec![1; 50_000], vec![1; 60_000]] {
        let hub = tiny_hub();
        let client = Client::new(&hub);
        client.leave_part(&part);
        assert_weights_are_whole(&client.everything().expect("a model"));
        assert_eq!(hub.take_gets().last(), Some(&whole("model.safetensors")));
        assert!(!client.part().exists());
    }
}

#[test]
fn a_server_without_ranges_still_gives_a_whole_file() {
    let hub = tiny_hub();
    hub.state().ignores_ranges = true;
    let client = Client::new(&hub);
    client.leave_part(&weights()[..20_000]);
    assert_weights_are_whole(&client.everything().expect("a model"));
}

#[test]
fn content_that_never_has_its_hash_is_corrupt_and_not_kept() {
    let hub = tiny_hub();
    hub.state().lies = true;
    let client = Client::new(&hub);
    match client.everything() {
        Err(HubError::Corrupt { file, found, .. }) => {
            assert_eq!((file.as_str(), found), ("model.safetensors", sha256(&weights())));
        }
        other => panic!("{other:?}"),
    }
    assert!(!client.repo().join("snapshots").join(COMMIT).join("model.safetensors").exists());
}

#[test]
fn a_busy_hub_is_asked_again_and_at_last_believed() {
    let hub = tiny_hub();
    let client = Client::new(&hub);
    hub.state().busy = 3;
    client.resolve(MODEL, Need::ConfigOnly).expect("the fourth answer");
    hub.state().busy = 4;
    let error = Client::new(&hub).resolve(MODEL, Need::ConfigOnly).expect_err("too busy");
    assert!(matches!(error, HubError::Refused { status: 503, .. }), "{error:?}");
}

#[test]
fn two_programs_that_want_the_same_file_fetch_it_once() {
    let hub = tiny_hub();
    let client = Client::new(&hub);
    std::thread::scope(|scope| {
        let both = [(); 2].map(|()| scope.spawn(|| client.everything().expect("a model")));
        both.into_iter().for_each(|one| assert_weights_are_whole(&one.join().expect("no panic")));
    });
    let fetched = hub.take_gets().into_iter().filter(|(file, _)| file == "model.safetensors").count();
    assert_eq!(fetched, 1);
}

#[test]
fn a_cache_that_cannot_be_written_is_named() {
    let hub = tiny_hub();
    let mut client = Client::new(&hub);
    let file = client.folder.path().join("file");
    fs::write(&file, "").expect("a file");
    client.settings.cache = Some(file.clone());
    match client.everything() {
        Err(HubError::Io { path, .. }) => assert!(path.starts_with(&file), "{}", path.display()),
        other => panic!("{other:?}"),
    }
}
