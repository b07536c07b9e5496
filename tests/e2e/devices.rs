//! `shrink devices`, `--device` and `--threads`.

use crate::folder::golden;
use crate::program::{number, shrink};

#[test]
fn what_is_there_and_what_was_left_out_is_listed() {
    let found = shrink(&["devices", "--json", "--threads", "3"]).json();
    assert_eq!(number(&found, "threads"), 3.0);
    let backends = found["backends"].as_array().expect("a list");
    let cpu = backends.iter().find(|backend| backend["name"] == "cpu").expect("the processor");
    assert_eq!(cpu["devices"][0]["device"], "cpu");
    let text = shrink(&["devices"]).text();
    for backend in backends {
        let left_out = format!("--features {}", backend["name"].as_str().expect("a name"));
        assert_eq!(text.contains(&left_out), backend["compiled_in"] == false, "{text}");
    }
}

#[test]
fn any_number_of_threads_gives_the_same_tokens_and_none_is_refused() {
    let generate = |threads: &str| {
        let model = golden("demo");
        let args =
            ["generate", &model, "--prompt", "The", "--json", "--device", "auto", "--threads", threads];
        shrink(&args).json()["tokens"].clone()
    };
    assert_eq!(generate("1"), generate("4"));
    shrink(&["devices", "--threads", "0"]).misused("0 is not in 1..=1024");
    shrink(&["devices", "--threads", "many"]).misused("--threads");
}

/// WGSL has no bf16; the tests on a software Vulkan run this (`cargo xtask ci wgpu`).
#[cfg(all(feature = "wgpu", not(feature = "vulkan")))]
#[test]
fn a_cache_in_a_type_that_the_device_lacks_is_refused() {
    let model = golden("demo");
    let generate = |device: &str, dtype: &str| {
        let flags = ["--device", device, "--cache-dtype", dtype, "--max-new-tokens", "6"];
        shrink(&[&["generate", &model, "--prompt", "The", "--quiet"], &flags[..]].concat())
    };
    generate("wgpu", "bf16").refused("this device does not compute in bf16");
    assert_eq!(generate("wgpu", "f16").text(), generate("cpu", "f16").text());
    assert_eq!(generate("cpu", "bf16").text(), generate("cpu", "f32").text());
}

#[cfg(feature = "wgpu")]
#[test]
fn a_device_out_of_memory_is_no_bug_of_ours() {
    let batch = ["--context", "200", "--batch-size", "100000", "--repeat", "1"];
    let model = golden("demo");
    let found = shrink(&[&["bench", &model, "--device", "wgpu"], &batch[..]].concat());
    assert!(!found.stderr.contains("panicked"), "{}", found.stderr);
    found.refused("the device is out of memory");
}
