//! A hub that refuses, and a cache that has it all: the cache serves, and says so.

use std::fs;
use std::sync::Mutex;

use handlers::hub::{DownloadObserver, Hub, HubError, Need};

use super::server::{COMMIT, TestHub};
use super::{Client, MODEL, large, tiny_hub};

const LATER: &str = "89abcdef0123456789abcdef0123456789abcdef";

/// Refusals that say nothing of whether the revision is there.
const PASSING: [(&str, &str); 12] = [
    ("401 Unauthorized", ""),
    ("401 Unauthorized", "GatedRepo"),
    ("401 Unauthorized", "RepoNotFound"),
    ("403 Forbidden", ""),
    ("403 Forbidden", "GatedRepo"),
    ("404 Not Found", "RepoNotFound"),
    ("408 Request Timeout", ""),
    ("429 Too Many Requests", ""),
    ("500 Internal Server Error", ""),
    ("502 Bad Gateway", ""),
    ("503 Service Unavailable", ""),
    ("504 Gateway Timeout", ""),
];

/// Hears what was taken from the cache.
#[derive(Default)]
struct Heard(Mutex<Vec<String>>);

impl DownloadObserver for Heard {
    fn begin(&self, _: &str, _: u64) {}
    fn advance(&self, _: u64) {}
    fn end(&self) {}
    fn served_from_cache(&self, id: &str, commit: &str, reason: &HubError) {
        self.0.lock().expect("no panic").push(format!("{id} {commit} {reason}"));
    }
}

impl Heard {
    fn resolve(&self, client: &Client, need: Need) -> Result<handlers::hub::ModelFolder, HubError> {
        Hub::new(client.settings.clone()).resolve(MODEL, need, self)
    }

    fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().expect("no panic"))
    }
}

#[test]
fn a_cached_model_serves_whatever_the_hub_has_against_it() {
    let hub = tiny_hub();
    let mut client = Client::new(&hub);
    let model = client.everything().expect("a model");
    let heard = Heard::default();
    for token in [None, Some("hf_expired".to_owned())] {
        client.settings.token = token;
        for refusal in PASSING {
            hub.state().refusal = Some(refusal);
            for need in [Need::ConfigOnly, Need::Everything] {
                hub.take_log();
                assert_eq!(heard.resolve(&client, need).expect("the cached model"), model, "{refusal:?}");
                assert_eq!(hub.take_log().len(), 1, "who has it all does not wait: {refusal:?}");
                let said = heard.take();
                assert!(
                    matches!(said.as_slice(), [one] if one.starts_with(&format!("{MODEL} {COMMIT} "))),
                    "{said:?}"
                );
            }
        }
    }
    hub.state().refusal = None;
    heard.resolve(&client, Need::Everything).expect("the model");
    assert_eq!(heard.take(), [""; 0], "a hub that serves is no news");
}

#[test]
fn a_hub_that_cannot_be_reached_is_told_of_too() {
    let hub = tiny_hub();
    let client = Client::new(&hub);
    let model = client.everything().expect("a model");
    drop(hub);
    let heard = Heard::default();
    assert_eq!(heard.resolve(&client, Need::Everything).expect("the cached model"), model);
    assert!(heard.take()[0].contains("unreachable"));
}

#[test]
fn a_revision_that_is_gone_is_final() {
    let hub = tiny_hub();
    let client = Client::new(&hub);
    client.everything().expect("a model");
    hub.state().refusal = Some(("404 Not Found", "RevisionNotFound"));
    assert!(matches!(client.everything(), Err(HubError::RevisionNotFound { .. })));
}

#[test]
fn half_a_model_does_not_serve() {
    let hub = tiny_hub();
    let mut client = Client::new(&hub);
    client.settings.retries = 0;
    client.resolve(MODEL, Need::ConfigOnly).expect("a configuration");
    for (refusal, expected) in [
        (("401 Unauthorized", "GatedRepo"), "gated"),
        (("429 Too Many Requests", ""), "429"),
        (("503 Service Unavailable", ""), "503"),
    ] {
        hub.state().refusal = Some(refusal);
        let error = client.everything().expect_err("there are no weights").to_string();
        assert!(error.contains(expected), "{error}");
        client.resolve(MODEL, Need::ConfigOnly).expect("the configuration is there");
    }
}

#[test]
fn a_branch_that_moved_on_to_files_behind_a_licence_stays_where_it_was() {
    let hub = tiny_hub();
    let client = Client::new(&hub);
    let model = client.everything().expect("a model");
    hub.state().commit = LATER.to_owned();
    hub.state().gated = true;
    let heard = Heard::default();
    assert_eq!(heard.resolve(&client, Need::Everything).expect("the cached model"), model);
    assert!(heard.take()[0].contains("gated"));
    assert_eq!(fs::read_to_string(client.repo().join("refs/main")).expect("a reference"), COMMIT);
    hub.state().gated = false;
    let newer = client.everything().expect("the newer model");
    assert_eq!(newer.revision.as_deref(), Some(LATER));
}

#[test]
fn a_cached_data_set_serves_as_a_model_does() {
    let hub = TestHub::new("datasets/org/text", &[("data/train-00000-of-00001.parquet", large(1, 20))]);
    let client = Client::new(&hub);
    let heard = Heard::default();
    let fetch = || Hub::new(client.settings.clone()).dataset_files("org/text", "", "train", &heard);
    let files = fetch().expect("the split");
    for refusal in PASSING {
        hub.state().refusal = Some(refusal);
        assert_eq!(fetch().expect("the cached split"), files, "{refusal:?}");
        assert_eq!(heard.take().len(), 1, "{refusal:?}");
    }
}
