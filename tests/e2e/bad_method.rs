//! Methods asked for what they cannot do: one error with a hint before anything is computed, and nothing left behind.

use crate::folder::{Scratch, golden};
use crate::program::{Run, shrink};

/// Converting llama's twin (3 layers, d_kv 32) at 2x with these options; nothing may be left.
#[track_caller]
fn convert(more: &[&str]) -> Run {
    let scratch = Scratch::new();
    let out = scratch.path("out");
    let run = shrink(&[&["convert", &golden("llama"), "-o", &out], more].concat());
    assert_eq!(scratch.names(), [""; 0], "something was left behind");
    run
}

#[track_caller]
fn plain(more: &[&str]) -> Run {
    convert(&[&["-r", "2", "--no-calibration"], more].concat())
}

#[test]
fn groups_of_no_layer_or_of_more_than_there_are() {
    for size in ["4", "1000000"] {
        let hint = plain(&["--method", "xkv", "--cross-layer-group-size", size])
            .refused(&format!("the cross-layer group size is {size}, expected 1 to 3"));
        assert!(hint.contains("shrink inspect"), "{hint}");
    }
    for layers in ["3", "4"] {
        plain(&["--method", "xkv", "--xkv-skip-early-layers", layers])
            .refused(&format!("the number of early layers to skip is {layers}, expected 0 to 2"));
    }
    plain(&["--method", "xkv", "--cross-layer-group-size", "-1"]).misused("'-1'");
    plain(&["--method", "xkv", "--cross-layer-group-size", "0"]).misused("--cross-layer-group-size");
}

#[test]
fn kept_layers_without_saying_which() {
    plain(&["--method", "xkv", "--keep-early-layers-original"]).misused("--xkv-skip-early-layers");
}

#[test]
fn windows_and_stages_out_of_range() {
    for window in ["3", "99"] {
        let hint = plain(&["--method", "cascade", "--cascade-window", window])
            .refused(&format!("the cascade window is {window}, expected 0 to 2"));
        assert!(hint.contains("shrink inspect"), "{hint}");
    }
    plain(&["--method", "cascade", "--cascade-group", "4"])
        .refused("the cascade group is 4, expected 1 to 3");
    plain(&["--method", "cascade", "--cascade-group", "0"]).misused("--cascade-group");
    plain(&["--method", "cascade", "--cascade-rounds", "1001"]).misused("1001 is not in 0..=1000");
}

#[test]
fn kept_dimensions_that_leave_nothing_or_half_a_pair() {
    let decoupled = |d_rope: &str, ratio: &str| {
        convert(&["--no-calibration", "-r", ratio, "--method", "decoupled_rope", "--d-rope", d_rope])
            .refused(&format!("{d_rope} dimensions cannot be kept of a latent width of "))
    };
    for d_rope in ["16", "17", "32", "1000"] {
        assert!(decoupled(d_rope, "2").contains("keep 2 to 14"), "{d_rope}");
    }
    plain(&["--method", "decoupled_rope", "--d-rope", "0"]).misused("--d-rope");
    assert!(decoupled("7", "2").contains("even number"));
    assert!(decoupled("2", "16").contains("--method separate"));
    // Left out, it is 64.
    plain(&["--method", "decoupled_rope"]).refused("64 dimensions cannot be kept of a latent width of 16");
}

#[test]
fn options_of_another_method() {
    let flags = [
        (&["--cross-layer-group-size", "2"][..], "xkv", "separate"),
        (&["--xkv-skip-early-layers", "1"], "xkv", "joint"),
        (&["--xkv-skip-early-layers", "1", "--keep-early-layers-original"], "xkv", "cascade"),
        (&["--d-rope", "4"], "decoupled_rope", "xkv"),
        (&["--cascade-window", "1"], "cascade", "separate"),
        (&["--cascade-group", "1"], "cascade", "joint"),
        (&["--cascade-latents", "apart"], "cascade", "decoupled_rope"),
        (&["--cascade-rounds", "1"], "cascade", "xkv"),
    ];
    for (flags, owner, other) in flags {
        let what = format!("{} belongs to the method {owner}, not to {other}", flags[0]);
        let hint = plain(&[&["--method", other], flags].concat()).refused(&what);
        assert!(hint.contains(&format!("--method {owner}")), "{hint}");
    }
    // Layers that keep their attention are no candidate at equal bytes.
    plain(&["--xkv-skip-early-layers", "1", "--keep-early-layers-original"])
        .refused("--keep-early-layers-original belongs to the method xkv, not to auto");
}

#[test]
fn what_needs_text_without_any() {
    for args in [
        &["--objective", "fisher"][..],
        &["--method", "joint", "--objective", "fisher"],
        &["--method", "cascade", "--cascade-window", "1"],
    ] {
        let hint = plain(args).refused("needs calibration text");
        assert!(hint.contains("--calibration") && hint.contains("separate"), "{hint}");
    }
}

#[test]
fn fewer_tokens_than_latent_numbers_of_any_method() {
    let scratch = Scratch::new();
    // Of four windows of five tokens one is held back.
    let file = scratch.write("few.txt", "x".repeat(20));
    let few = ["--calibration", &file, "--max-calibration-length", "5"];
    for (method, width) in [("separate", 16), ("xkv", 16), ("joint", 32), ("cascade", 16)] {
        let hint = convert(&[&["-r", "2", "--method", method], &few[..]].concat())
            .refused(&format!("15 tokens, fewer than the latent width {width}"));
        assert!(hint.contains(&format!("at least {width} tokens")), "{hint}");
    }
}

#[test]
fn one_width_for_all_and_ranks_that_differ() {
    for text in [&["--no-calibration"][..], &["--calibration", "builtin:prose"]] {
        convert(&[&["--d-latent", "8", "--ranks", "global"], text].concat())
            .refused("--ranks is global, expected uniform with --d-latent");
    }
}

#[test]
fn statistics_of_nothing() {
    for flag in ["--fisher-samples", "--fisher-draws"] {
        convert(&[flag, "0"]).misused(flag);
        plain(&[flag, "few"]).misused("invalid value 'few'");
        // Without a Fisher pass they would do nothing.
        for other in [&["--no-calibration"][..], &["--objective", "attention"]] {
            let hint = convert(&[&[flag, "2"], other].concat())
                .refused(&format!("{flag} belongs to the objective fisher"));
            assert!(hint.contains("--objective fisher"), "{hint}");
        }
    }
    plain(&["--sink-weight", "1"]).misused("--no-calibration");
    for weight in ["nan", "-1", "101", "inf"] {
        convert(&["--sink-weight", weight]).misused("'--sink-weight <SHARE>': expected 0 to 100");
    }
    for memory in ["nan", "-1", "inf", "1e300"] {
        plain(&["--scratch-memory", memory]).misused("'--scratch-memory <GIB>': expected 0 to 1000000");
    }
}

#[test]
fn names_that_are_none() {
    for (flag, known) in [
        ("--method", "decoupled_rope"),
        ("--objective", "attention"),
        ("--ranks", "global"),
        ("--cascade-latents", "apart"),
    ] {
        plain(&[flag, "magic"]).misused("invalid value 'magic'");
        plain(&[flag, "magic"]).misused(known);
    }
}

#[test]
fn comparisons_of_nothing() {
    let scratch = Scratch::new();
    let (donor, heldout) = (golden("llama"), golden("demo/heldout.txt"));
    let compare = |more: &[&str]| {
        let few = ["--no-calibration", "--max-length", "32", "--windows", "2"];
        shrink(&[&["compare", &donor, "--data", &heldout], &few[..], more].concat())
    };
    compare(&["-r", "33"]).refused("is out of range: from 1 to d_kv = 32");
    for ratio in ["0.5", "nan"] {
        compare(&["-r", ratio]).misused("expected 1 or more");
    }
    compare(&["--method", "decoupled_rope"]).refused("64 dimensions cannot be kept");
    compare(&["--method", "cascade", "--cascade-window", "3"])
        .refused("the cascade window is 3, expected 0 to 2");
    compare(&["--method", "separate", "--objective", "fisher"]).refused("needs calibration text");
    compare(&["--method", "separate", "--scratch-memory", "-1"]).misused("--scratch-memory");
    for (flag, value) in [("--max-length", "1"), ("--windows", "0")] {
        let args = ["compare", &donor, "--data", &heldout, "--no-calibration", flag, value];
        shrink(&args).misused(flag);
    }
    compare(&["--method", "separate", "--fisher-samples", "2"])
        .refused("--fisher-samples belongs to the objective fisher");
    let hint = compare(&["--method", "separate,joint", "--cascade-window", "1"])
        .refused("--cascade-window belongs to the method cascade, not to separate,joint");
    assert!(hint.contains("--method cascade"), "{hint}");
    shrink(&["compare", &donor]).misused("--data");
    shrink(&["compare", &donor, "--data", &scratch.path("nowhere.txt"), "--no-calibration"])
        .refused("nowhere.txt");
}
