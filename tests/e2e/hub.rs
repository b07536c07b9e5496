//! Models by their hub id, from a hub that runs in the test.

use crate::folder::{Scratch, golden};
use crate::program::{BINARY, Run, assert_close, command, number, shrink};

#[path = "../../crates/handlers/tests/suite/hub/server.rs"]
mod server;

use server::{COMMIT, TestHub};

/// A hub with one model, a golden of ours.
fn hub_of(name: &str) -> TestHub {
    let file = |file: &str| std::fs::read(golden(&format!("{name}/{file}"))).expect("a file of the model");
    let files = [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ];
    TestHub::new("models/org/tiny", &files.map(|name| (name, file(name))))
}

/// Runs the program against a hub, its cache in the scratch folder.
fn online(endpoint: &str, cache: &Scratch, args: &[&str]) -> Run {
    let mut command = command(BINARY);
    command.env_remove("HF_HUB_OFFLINE").env("HF_ENDPOINT", endpoint).env("HF_HOME", cache.path("hf"));
    Run::of(command.args(args))
}

#[test]
fn a_hub_id_is_as_good_as_a_folder() {
    let (hub, scratch) = (hub_of("qwen2"), Scratch::new());
    let run = online(&hub.endpoint, &scratch, &["inspect", "org/tiny"]);
    assert_eq!(run.text(), shrink(&["inspect", &golden("qwen2")]).text());
    let gets: Vec<String> = hub.take_gets().into_iter().map(|(file, _)| file).collect();
    assert_eq!(gets, ["config.json"], "to describe a model its configuration is enough");

    let (out, local) = (scratch.path("out"), scratch.path("local"));
    let run =
        online(&hub.endpoint, &scratch, &["convert", "org/tiny", "-o", &out, "-r", "2", "--no-calibration"]);
    assert!(run.stderr.contains("downloading model.safetensors: done in "), "{}", run.stderr);
    assert!(run.text().contains("cache 2.00x smaller"));
    shrink(&["convert", &golden("qwen2"), "-o", &local, "-r", "2", "--no-calibration"]).text();
    assert_eq!(scratch.read("out/model.safetensors"), scratch.read("local/model.safetensors"));
    assert_eq!(scratch.read("out/tokenizer.json"), scratch.read("local/tokenizer.json"));
    // The record names the commit that was converted, the card the model as the hub knows it.
    let name = format!("org/tiny@{COMMIT}");
    assert_eq!(scratch.read_json("out/shrink.json")["donor"]["name"], name);
    let card = String::from_utf8(scratch.read("out/README.md")).expect("a text");
    assert!(
        card.contains("base_model: \"org/tiny\"\n") && card.contains("# org/tiny, KV cache 2.00x"),
        "{card}"
    );

    // What is cached opens when the hub is gone.
    drop(hub);
    let heldout = golden("demo/heldout.txt");
    let args = [
        "eval",
        &out,
        "--data",
        &heldout,
        "--max-length",
        "32",
        "--windows",
        "2",
        "--against",
        "org/tiny",
        "--json",
    ];
    let found = online("http://127.0.0.1:9", &scratch, &args).json();
    let expected = shrink(&[&args[..8], &["--against", &golden("qwen2"), "--json"]].concat()).json();
    assert_close(number(&found["against"], "kl"), number(&expected["against"], "kl"), 1e-12);
}

/// Every command that opens a model, by its first argument or as the other one, asks for its configuration and no more.
#[test]
fn a_model_of_no_known_family_costs_its_configuration_alone() {
    let hub = hub_of("llama");
    let made = Scratch::new();
    let (half, heldout, text) =
        (made.path("half"), golden("demo/heldout.txt"), golden("demo/calibration.txt"));
    shrink(&["convert", &golden("llama"), "-o", &half, "-r", "2", "--no-calibration"]).text();
    let mut config: serde_json::Value =
        serde_json::from_slice(&hub.state().files["config.json"]).expect("a configuration");
    for (model_type, what) in [
        ("acme", "model type `acme` is unknown"),
        ("deepseek_v3", "already uses Multi-Head Latent Attention"),
    ] {
        config["model_type"] = model_type.into();
        hub.state().files.insert("config.json".into(), config.to_string().into_bytes());
        let (out, id) = (made.path("out"), "org/tiny");
        for args in [
            vec!["inspect", id],
            vec!["memory", id],
            vec!["convert", id, "-o", &out],
            vec!["convert", id, "-o", &out, "--dry-run"],
            vec!["compare", id, "--data", &heldout, "-r", "2"],
            vec!["eval", id, "--data", &heldout],
            vec!["eval", &half, "--data", &heldout, "--against", id],
            vec!["eval", "org/tiny", "--data", &heldout, "--against", &half],
            vec!["generate", id, "--prompt", "x"],
            vec!["bench", id],
            vec!["check", id],
            vec!["train", id, "-o", &out, "--data", &text],
            vec!["train", &half, "-o", &out, "--data", &text, "--teacher", id],
        ] {
            let scratch = Scratch::new();
            online(&hub.endpoint, &scratch, &args).refused(what);
            let gets: Vec<String> = hub.take_gets().into_iter().map(|(file, _)| file).collect();
            assert_eq!(gets, ["config.json"], "{args:?}");
        }
    }
    assert_eq!(made.names().iter().filter(|name| name.starts_with("out")).count(), 0);
}

#[test]
fn a_cached_model_serves_when_the_hub_refuses_and_a_note_says_so() {
    let (hub, scratch) = (hub_of("qwen2"), Scratch::new());
    let run = online(
        &hub.endpoint,
        &scratch,
        &["generate", "org/tiny", "--prompt", "The ship", "--max-new-tokens", "2"],
    );
    assert!(!run.stderr.contains("cache, as it was"), "{run:#?}");
    let expected = run.text();
    for (refusal, what) in [
        (("401 Unauthorized", "GatedRepo"), "access is gated"),
        (("429 Too Many Requests", ""), "HTTP 429"),
        (("503 Service Unavailable", ""), "HTTP 503"),
    ] {
        hub.state().refusal = Some(refusal);
        let run = online(
            &hub.endpoint,
            &scratch,
            &["generate", "org/tiny", "--prompt", "The ship", "--max-new-tokens", "2"],
        );
        let notes: Vec<&str> =
            run.stderr.lines().filter(|line| line.contains("taking org/tiny from the cache")).collect();
        assert!(notes.len() == 1 && notes[0].starts_with("note: ") && notes[0].contains(what), "{run:#?}");
        assert!(notes[0].contains(&COMMIT[..12]), "{run:#?}");
        assert_eq!(run.text(), expected);
    }
    let run = online(&hub.endpoint, &scratch, &["inspect", "org/tiny", "--quiet"]);
    assert_eq!(run.stderr, "", "a note is no result");
}

#[test]
fn a_conversion_from_the_hub_carries_what_a_local_one_does() {
    let (hub, local, scratch) = (hub_of("llama"), Scratch::of("llama"), Scratch::new());
    for name in ["LICENSE", "NOTICE", "USE_POLICY.md", "merges.txt", "tokenizer.model"] {
        local.write(name, name);
        hub.state().files.insert(name.into(), name.as_bytes().to_vec());
    }
    let (one, other) = (scratch.path("one"), scratch.path("other"));
    let args = |model: &str, out: &str| {
        ["convert", model, "-o", out, "-r", "2", "--no-calibration"].map(str::to_owned)
    };
    let from_hub = args("org/tiny", &one);
    online(&hub.endpoint, &scratch, &from_hub.each_ref().map(String::as_str)).text();
    shrink(&args(&local.root(), &other).each_ref().map(String::as_str)).text();
    let below = |out: &str| {
        let names = scratch.names().into_iter();
        names.filter_map(|name| Some(name.strip_prefix(out)?.to_owned())).collect::<Vec<_>>()
    };
    assert_eq!(below("one/"), below("other/"));
    assert_eq!(scratch.read("one/NOTICE"), b"NOTICE");
}

#[test]
fn a_data_set_at_the_hubs_own_conversion() {
    let parquet = std::fs::read(golden("corpus/sample.parquet")).expect("rows");
    let hub = TestHub::new("datasets/org/pile", &[("default/train/0000.parquet", parquet)]);
    hub.state().branch = Some("refs/convert/parquet".into());
    let scratch = Scratch::new();
    let (out, donor) = (scratch.path("out"), golden("llama"));
    let source = "org/pile@refs/convert/parquet";
    let args = ["convert", &donor, "-o", &out, "-r", "2", "--calibration", source];
    let few = ["--num-calibration-samples", "3", "--max-calibration-length", "16"];
    online(&hub.endpoint, &scratch, &[&args[..], &few].concat()).text();
    assert_eq!(scratch.read_json("out/shrink.json")["calibration"]["source"], source);
    let card = String::from_utf8(scratch.read("out/README.md")).expect("a text");
    assert!(card.contains(" tokens of pile |"), "{card}");
}

#[test]
fn a_model_that_the_hub_does_not_have() {
    let (hub, scratch) = (hub_of("llama"), Scratch::new());
    let out = scratch.path("out");
    for args in [vec!["inspect", "org/other"], vec!["convert", "org/other", "-o", &out]] {
        let hint = online(&hub.endpoint, &scratch, &args)
            .refused("org/other: no such repository on http://127.0.0.1:");
        assert!(hint.contains("check the spelling"), "{hint}");
    }
    online(&hub.endpoint, &scratch, &["inspect", "org/tiny@v9"]).refused("org/tiny: no revision \"v9\"");
    assert!(!scratch.names().contains(&"out".to_owned()));
}

#[test]
fn a_hub_that_is_down_names_the_ways_without_it() {
    let scratch = Scratch::new();
    let out = scratch.path("out");
    let args = ["convert", &golden("llama"), "-o", &out, "--calibration", "wikitext"];
    let hint =
        online("http://127.0.0.1:9", &scratch, &args).refused("cannot get the calibration dataset wikitext");
    assert!(
        hint.contains("--calibration FILE") && hint.contains("builtin") && hint.contains("--no-calibration"),
        "{hint}"
    );
    let hint = online("http://127.0.0.1:9", &scratch, &["inspect", "org/tiny"]).refused("unreachable");
    assert!(hint.contains("HF_ENDPOINT"), "{hint}");
    assert!(!scratch.names().contains(&"out".to_owned()));
}

#[test]
fn what_the_hub_says_about_a_dataset_is_passed_on() {
    let parquet = std::fs::read(golden("corpus/sample.parquet")).expect("rows");
    let hub = TestHub::new("datasets/org/text", &[("data/validation-00000-of-00001.parquet", parquet)]);
    let scratch = Scratch::new();
    let (out, donor) = (scratch.path("out"), golden("llama"));
    let few = ["--num-calibration-samples", "3", "--max-calibration-length", "16"];
    let args = [&["convert", &donor, "-o", &out, "-r", "2", "--calibration", "org/text"], &few[..]].concat();
    // There is no split `train`; the subset of a dataset other than wikitext is `default`.
    let run = online(&hub.endpoint, &scratch, &args);
    assert!(!run.stderr.contains("unreachable"), "{}", run.stderr);
    let hint = run.refused("cannot get the calibration dataset org/text: org/text: expected parquet files of subset \"default\", split \"train\"");
    assert!(hint.contains("split"), "{hint}");
    online(&hub.endpoint, &scratch, &[&args[..], &["--calibration-split", "validation"]].concat()).text();
    assert_eq!(scratch.read_json("out/shrink.json")["calibration"]["source"], "org/text");

    hub.state().gated = true;
    let (fresh, out) = (Scratch::new(), scratch.path("other"));
    let args =
        ["convert", &donor, "-o", &out, "--calibration", "org/text", "--calibration-split", "validation"];
    let hint = online(&hub.endpoint, &fresh, &args).refused("org/text: access is gated");
    assert!(hint.contains("HF_TOKEN") && !hint.contains("--no-calibration"), "{hint}");
}

#[test]
fn a_download_that_is_not_what_was_announced_is_refused() {
    let (hub, scratch) = (hub_of("llama"), Scratch::new());
    hub.state().lies = true;
    let out = scratch.path("out");
    let hint =
        online(&hub.endpoint, &scratch, &["convert", "org/tiny", "-o", &out]).refused("download is corrupt");
    assert!(hint.contains("again"), "{hint}");
    assert!(!scratch.names().contains(&"out".to_owned()));
}

/// Publishes a folder as somebody with a token.
fn push(hub: &TestHub, scratch: &Scratch, more: &[&str]) -> Run {
    let mut command = command(BINARY);
    command.env_remove("HF_HUB_OFFLINE").env("HF_ENDPOINT", &hub.endpoint).env("HF_HOME", scratch.path("hf"));
    command.env("HF_TOKEN", "hf_writes").args(["push", &scratch.path("out"), "org/tiny"]).args(more);
    Run::of(&mut command)
}

/// A hub with nothing on it but a name, and a folder to bring there.
fn to_publish() -> (TestHub, Scratch) {
    let (hub, scratch) = (TestHub::new("models/org/tiny", &[]), Scratch::new());
    hub.state().token = Some("hf_writes".into());
    let line = ["convert", &golden("llama"), "-o", &scratch.path("out"), "-r", "2", "--no-calibration"];
    shrink(&line).text();
    (hub, scratch)
}

#[test]
fn what_is_published_opens_by_its_id() {
    for chunk in [None, Some(10_000)] {
        let (hub, scratch) = to_publish();
        hub.state().uploads.chunk = chunk;
        let report = push(&hub, &scratch, &["--json", "--message", "Half the cache"]).json();
        assert_eq!(report["commit"], COMMIT);
        assert_eq!(number(&report, "known_bytes"), 0.0);
        assert_eq!(hub.state().uploads.made_private, Some(true), "private unless asked otherwise");
        assert_eq!(hub.state().uploads.message, "Half the cache");
        let there = hub.state().files.clone();
        for (name, content) in &there {
            if name != "shrink.json" {
                assert_eq!(&scratch.read(&format!("out/{name}")), content, "{name}");
            }
        }
        assert!(there.contains_key("modeling_shrink.py") && there.contains_key("README.md"));
        // Where the donor lay on this machine is nobody's business.
        let record = String::from_utf8(there["shrink.json"].clone()).expect("a text");
        assert!(record.contains("\"name\": \"llama\"") && !record.contains(&golden("llama")), "{record}");
        hub.state().token = None;
        let heldout = golden("demo/heldout.txt");
        let line = ["eval", "org/tiny", "--data", &heldout, "--max-length", "40", "--windows", "2", "--json"];
        assert!(number(&online(&hub.endpoint, &scratch, &line).json(), "perplexity") > 1.0);
        let by_id = online(&hub.endpoint, &scratch, &["inspect", "org/tiny"]).text();
        assert_eq!(by_id, shrink(&["inspect", &scratch.path("out")]).text());
    }
}

#[test]
fn a_push_goes_on_where_it_was_and_a_second_one_sends_nothing_large() {
    let (hub, scratch) = to_publish();
    // Two uploads break off and are tried again.
    hub.state().uploads.breaks = 2;
    push(&hub, &scratch, &["--public"]).text();
    assert_eq!(hub.state().uploads.made_private, Some(false));
    drop(hub.take_log());
    let again = push(&hub, &scratch, &["--json"]).json();
    let weights = scratch.read("out/model.safetensors").len() as f64;
    assert_eq!(number(&again, "known_bytes"), weights);
    assert!(hub.take_log().iter().all(|request| request.method != "PUT"), "nothing is sent twice");
}

#[test]
fn what_may_not_be_published_says_why() {
    let (hub, scratch) = to_publish();
    let mut anonymous = command(BINARY);
    anonymous
        .env_remove("HF_HUB_OFFLINE")
        .env("HF_ENDPOINT", &hub.endpoint)
        .env("HF_HOME", scratch.path("hf"));
    anonymous.env_remove("HF_TOKEN").args(["push", &scratch.path("out"), "org/tiny"]);
    Run::of(&mut anonymous).refused("publishing needs a token");
    hub.state().token = Some("another".into());
    push(&hub, &scratch, &[]).refused("org/tiny: access refused (HTTP 403)");
    assert!(hub.state().files.is_empty(), "nothing is to be seen");
    shrink(&["push", &scratch.path("out"), "org/ti ny"]).refused("a character other than letters");
    // A record from elsewhere cannot have other files published.
    hub.state().token = Some("hf_writes".into());
    let mut record = scratch.read_json("out/shrink.json");
    record["files"].as_array_mut().expect("files").push("../secret".into());
    scratch.write("secret", "of the user's");
    scratch.write("out/shrink.json", record.to_string());
    push(&hub, &scratch, &[]).refused("shrink.json lists ../secret, which is no file");
    assert!(hub.state().files.is_empty(), "nothing is to be seen");
    let run = shrink(&["push", &golden("llama"), "org/tiny"]);
    run.refused("has no shrink.json with the list of its files");
}
