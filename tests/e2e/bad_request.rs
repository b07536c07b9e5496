//! Requests that no model could serve: exit code 1 where the value is wrong, 2 where the command line is.

use crate::folder::{Scratch, golden};
use crate::program::{Run, shrink, shrink_reading};

/// Converting llama's twin (d_kv 32) with these options; nothing may be left.
#[track_caller]
fn convert(more: &[&str]) -> Run {
    let scratch = Scratch::new();
    let out = scratch.path("out");
    let run = shrink(&[&["convert", &golden("llama"), "-o", &out, "--no-calibration"], more].concat());
    assert_eq!(scratch.names(), [""; 0], "something was left behind");
    run
}

#[test]
fn a_ratio_below_one_beyond_d_kv_or_no_number() {
    for ratio in ["33", "1e9", "1e308"] {
        for flag in ["-r", "--compression-ratio"] {
            let hint = convert(&[flag, ratio]).refused("is out of range: from 1 to d_kv = 32");
            assert!(hint.contains("2 halves the cache"), "{hint}");
        }
        shrink(&["memory", &golden("llama"), "-r", ratio]).refused("is out of range: from 1 to d_kv = 32");
    }
    for ratio in ["0.5", "-2", "-1e9", "0", "0.999", "inf", "NaN"] {
        convert(&["-r", ratio])
            .misused(&format!("'{ratio}' for '--compression-ratio <RATIO>': expected 1 or more"));
        shrink(&["memory", &golden("llama"), "-r", ratio]).misused("expected 1 or more");
    }
    convert(&["-r", "two"]).misused("invalid value 'two'");
}

#[test]
fn a_latent_width_of_zero_or_beyond_d_kv() {
    for width in ["33", "2147483647"] {
        let hint = convert(&["--d-latent", width])
            .refused(&format!("latent width {width} is out of range: from 1 to d_kv = 32"));
        assert!(hint.contains("16 halves the cache"), "{hint}");
    }
    for width in ["0", "-1", "1.5", "many", "1000000000000"] {
        convert(&["--d-latent", width]).misused("--d-latent");
    }
    convert(&["--d-latent", "8", "-r", "2"]).misused("cannot be used with");
}

#[test]
fn a_model_that_is_converted_already() {
    let scratch = Scratch::new();
    let (half, again) = (scratch.path("half"), scratch.path("again"));
    shrink(&["convert", &golden("llama"), "-o", &half, "-r", "2", "--no-calibration"]).text();
    let before = scratch.names();
    let hint = shrink(&["convert", &half, "-o", &again, "-r", "2", "--no-calibration"])
        .refused("is converted already");
    assert!(hint.contains("convert the donor again"), "{hint}");
    shrink(&["memory", &half, "-r", "2"]).refused("is converted already");
    assert_eq!(scratch.names(), before);
}

#[test]
fn a_type_that_a_weight_does_not_fit() {
    let (donor, scratch) = (Scratch::of("llama"), Scratch::new());
    let key = "model.layers.0.mlp.up_proj.weight";
    donor.edit(|tensors| tensors.get_mut(key).expect("a tensor").set(3, 70_000.0));
    let args = [
        "convert",
        &donor.root(),
        "-o",
        &scratch.path("out"),
        "-r",
        "2",
        "--no-calibration",
        "--dtype",
        "f16",
    ];
    let hint = shrink(&args).refused(&format!("{key} holds 70000, which overflows f16"));
    assert!(hint.contains("--dtype bf16"), "{hint}");
    assert_eq!(scratch.names(), [""; 0]);
}

#[test]
fn windows_and_strides_that_score_nothing() {
    let heldout = golden("demo/heldout.txt");
    let eval = |more: &[&str]| shrink(&[&["eval", &golden("llama"), "--data", &heldout], more].concat());
    for (flag, value) in [("--max-length", "0"), ("--max-length", "1"), ("--windows", "0"), ("--stride", "0")]
    {
        eval(&[flag, value]).misused(&format!("invalid value '{value}' for '{flag} <N>'"));
    }
    for stride in ["32", "33"] {
        eval(&["--max-length", "32", "--stride", stride])
            .refused(&format!("--stride is {stride}, expected less than --max-length = 32"));
    }
    let hint = eval(&["--max-length", "65"]).refused("windows of 65 tokens exceed the model's context of 64");
    assert!(hint.contains("--max-length"), "{hint}");
    eval(&["--max-length", "2147483647"]).refused("exceed the model's context of 64");
    eval(&["--windows=-1"]).misused("--windows");
}

#[test]
fn a_prompt_longer_than_the_context() {
    for model in ["llama", "gpt2"] {
        let prompt = "x".repeat(100);
        let hint =
            shrink(&["generate", &golden(model), "--prompt", &prompt]).refused("the prompt has 100 tokens");
        assert!(hint.contains("shorten the prompt"), "{hint}");
        // One long prompt refuses the batch before a word of it is printed.
        shrink(&["generate", &golden(model), "-p", "x", "-p", &prompt]).refused("the prompt has 100 tokens");
    }
    // A prompt that fills the context leaves no room for a token.
    shrink(&["generate", &golden("llama"), "-p", &"x".repeat(64)]).refused("the model's context 64: no room");
}

#[test]
fn a_prompt_without_a_token() {
    let hint = shrink(&["generate", &golden("demo"), "--prompt", ""]).refused("prompt 0 is empty");
    assert!(hint.contains("--prompt"), "{hint}");
    shrink(&["generate", &golden("demo"), "-p", "x", "-p", "", "--json"]).refused("prompt 1 is empty");
    shrink(&["generate", &golden("demo"), "-p", "-"]).refused("prompt 0 is empty");
}

#[test]
fn a_prompt_that_is_not_utf8() {
    let args = ["generate", &golden("demo"), "--prompt", "-"];
    let hint = shrink_reading(&args, b"caf\xe9").refused("cannot read the prompt from stdin");
    assert!(hint.contains("UTF-8"), "{hint}");
}

#[test]
fn settings_of_sampling_that_are_none() {
    let generate = |more: &[&str]| shrink(&[&["generate", &golden("demo"), "-p", "x"], more].concat());
    for temperature in ["-1", "nan", "inf"] {
        generate(&["--temperature", temperature]).misused("expected 0 or more");
    }
    for top_p in ["0", "-0.5", "1.5", "nan"] {
        generate(&["--top-p", top_p]).misused("expected more than 0, at most 1");
    }
    generate(&["--top-k", "0"]).misused("--top-k");
    generate(&["--seed=-3"]).misused("--seed");
}

#[test]
fn tables_of_nothing() {
    let memory = |more: &[&str]| shrink(&[&["memory", &golden("llama")], more].concat());
    memory(&["--batch-size", "0"]).misused("--batch-size");
    memory(&["--sequence-lengths", "512,0"]).misused("--sequence-lengths");
    memory(&["--sequence-lengths", "many"]).misused("--sequence-lengths");
}

#[test]
fn a_device_that_is_not_there() {
    for device in ["gpu", "cpu:1", "cuda:x"] {
        shrink(&["inspect", &golden("llama"), "--device", device])
            .refused(&format!("--device is {device}, expected auto, cpu, wgpu"));
    }
}

#[test]
fn a_command_line_that_cannot_be_understood() {
    shrink(&["frobnicate"]).misused("unrecognized subcommand 'frobnicate'");
    shrink(&["inspect"]).misused("<MODEL>");
    shrink(&["inspect", "a", "b"]).misused("unexpected argument 'b'");
    shrink(&["convert", "x"]).misused("--output");
    shrink(&["eval", "x"]).misused("--data");
    shrink(&["generate", "x"]).misused("--prompt");
    shrink(&["convert", "x", "-o", "y", "--method", "magic"]).misused("invalid value 'magic'");
    shrink(&["convert", "x", "-o", "y", "--dtype", "f8"]).misused("invalid value 'f8'");
    shrink(&["convert", "x", "-o", "y", "--no-calibration", "--calibration", "builtin:prose"])
        .misused("cannot be used with");
    let bare = shrink(&[]);
    assert!(bare.code == Some(2) && bare.stdout.is_empty() && bare.stderr.contains("Usage: "), "{bare:#?}");
}

#[test]
fn help_goes_to_stdout_and_shows_an_example() {
    let text = shrink(&["--help"]).text();
    for command in ["demo", "inspect", "convert", "compare", "eval", "generate", "memory", "check"] {
        assert!(text.contains(&format!("\n  {command} ")), "{command} in {text}");
        assert!(
            shrink(&[command, "--help"]).text().contains(&format!("Usage: shrink {command} ")),
            "{command}"
        );
        let help = shrink(&[command, "--help"]).text();
        assert!(help.contains(&format!("\n  shrink {command}")), "an example in {help}");
    }
    assert!(text.contains("shrink convert ./smollm2 -o ./smollm2-2x"), "{text}");
    assert_eq!(shrink(&["--version"]).text(), format!("shrink {}\n", env!("CARGO_PKG_VERSION")));
}
