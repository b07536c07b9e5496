//! The layers inside `mla-core`: attention and caches serve the decoder and do not know it.
//!
//! `attention/` never names `crate::decoder`. `cache/` may name the types that `decoder/config.rs` and
//! `decoder/latents.rs` declare, since a cache is laid out from a configuration, and nothing else of it; of `attention/`, which reads caches, it names nothing.

use super::Violation;
use super::code::{code_only, paths, words};
use super::tree::Tree;

const SRC: &str = "crates/mla-core/src";
const CONFIGS: [&str; 2] =
    ["crates/mla-core/src/decoder/config.rs", "crates/mla-core/src/decoder/latents.rs"];

/// Every path from `attention/` or `cache/` into the decoder that the layers forbid.
pub fn check(tree: &Tree) -> Vec<Violation> {
    let mut config_types = Vec::new();
    for path in CONFIGS {
        let Some(text) = tree.text(path) else {
            return vec![Violation::new(
                path,
                1,
                "is missing; it declares types a cache may know of the decoder",
            )];
        };
        config_types.extend(declared_types(text));
    }
    let root = tree.text(&format!("{SRC}/lib.rs")).unwrap_or_default();
    let [exports, of_attention] = ["decoder", "attention"].map(|module| exports_of(module, root));
    let mut found = Vec::new();
    for layer in ["attention", "cache"] {
        let may_know_configs = layer == "cache";
        let mut files = 0;
        for (path, file) in tree.below(&format!("{SRC}/{layer}")) {
            files += 1;
            for (line, name) in names_of("decoder", &file.text, &exports) {
                if may_know_configs && config_types.contains(&name) {
                    continue;
                }
                let rule = match may_know_configs {
                    true => "of the decoder, a cache knows only the types of its configuration",
                    false => "attention does not know the decoder",
                };
                found.push(Violation::new(path, line, format!("names `decoder::{name}`; {rule}")));
            }
            let attention = if layer == "cache" { &file.text[..] } else { "" };
            for (line, name) in names_of("attention", attention, &of_attention) {
                let what = format!("names `attention::{name}`; a cache does not know who reads it");
                found.push(Violation::new(path, line, what));
            }
        }
        if files == 0 {
            let what =
                format!("has no {layer}/ any more; the layers in xtask/src/tidy/layers.rs are out of date");
            found.push(Violation::new(format!("{SRC}/lib.rs"), 1, what));
        }
    }
    found
}

/// The structs and enums a file makes public.
fn declared_types(text: &str) -> Vec<String> {
    let code = code_only(text);
    let words: Vec<_> = words(&code).into_iter().map(|word| word.text).collect();
    let declares = |w: &&[&str]| w[0] == "pub" && matches!(w[1], "struct" | "enum");
    words.windows(3).filter(declares).map(|w| w[2].to_owned()).collect()
}

/// A module's items that the crate's root exports again: `crate::Block` is `crate::decoder::Block`.
fn exports_of(module: &str, lib: &str) -> Vec<String> {
    let code = code_only(lib);
    let uses = words(&code).into_iter().filter(|word| word.text == "use");
    let from_module = |path: &Vec<String>| {
        path.iter().find(|name| !matches!(name.as_str(), "crate" | "self")).is_some_and(|name| name == module)
    };
    uses.flat_map(|word| paths(word.after))
        .filter(from_module)
        .filter_map(|path| path.last().cloned())
        .collect()
}

/// What a file names of a module, with lines; `*` and `self` stand for all of it.
fn names_of(module: &str, text: &str, exports: &[String]) -> Vec<(usize, String)> {
    let code = code_only(text);
    let mut found = Vec::new();
    for word in words(&code) {
        let inner = word.before.trim_end().ends_with("::");
        let Some(rest) = word.after.trim_start().strip_prefix("::") else { continue };
        if inner || !matches!(word.text, "crate" | "super") {
            continue;
        }
        for path in paths(rest) {
            let path: Vec<&str> =
                path.iter().map(String::as_str).skip_while(|name| *name == "super").collect();
            match path.as_slice() {
                [first] if *first == module => found.push((word.line, "self".to_owned())),
                [first, name, ..] if *first == module => found.push((word.line, (*name).to_owned())),
                [name, ..]
                    if word.text == "crate"
                        && (*name == "*" || exports.iter().any(|export| export == name)) =>
                {
                    found.push((word.line, (*name).to_owned()));
                }
                _ => {}
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIB: &str = "pub use decoder::{Block, Decoder, DecoderConfig};\npub use cache::Cache;\n";
    const CONFIG: &str = "/// pub struct Doc\npub struct DecoderConfig {}\nstruct Hidden;\n";
    const LATENTS: &str = "pub enum AttentionKind {}\n";

    fn found(attention: &str, cache: &str) -> Vec<String> {
        let tree = Tree::of(&[
            ("crates/mla-core/src/lib.rs", LIB),
            (CONFIGS[0], CONFIG),
            (CONFIGS[1], LATENTS),
            ("crates/mla-core/src/attention/rope.rs", attention),
            ("crates/mla-core/src/cache/mod.rs", cache),
        ]);
        check(&tree).iter().map(Violation::to_string).collect()
    }

    #[test]
    fn a_cache_may_know_configurations() {
        let cache = "use crate::positions::Padding;\nuse crate::decoder::{AttentionKind, DecoderConfig};\n";
        assert_eq!(found("use crate::cache::LayerCache;\n// crate::decoder::Block\n", cache), [""; 0]);
        assert_eq!(found("", "fn f(c: &crate::DecoderConfig) {}"), [""; 0]);
    }

    #[test]
    fn a_cache_may_know_nothing_else_of_the_decoder() {
        for cache in [
            "use crate::decoder::{AttentionKind, Block};",
            "use crate::decoder::*;",
            "use crate::decoder;",
            "use crate::{positions::Padding, decoder::{self}};",
            "use crate::Decoder;",
            "fn f() { super::super::decoder::Block::load(); }",
            "use crate::decoder::Hidden;",
        ] {
            assert_eq!(found("", cache).len(), 1, "{cache}");
        }
    }

    #[test]
    fn a_cache_may_not_know_who_reads_it() {
        for cache in [
            "use crate::attention::Frame;",
            "use crate::{positions::Padding, attention::{self}};",
            "fn f(_: &super::super::attention::Frame) {}",
        ] {
            assert_eq!(found("", cache).len(), 1, "{cache}");
        }
        assert_eq!(found("", "use crate::*;").len(), 2, "both");
    }

    #[test]
    fn attention_may_not_know_the_decoder_at_all() {
        for attention in [
            "use crate::decoder::DecoderConfig;",
            "use crate::{cache::LayerCache, DecoderConfig};",
            "fn f(c: &super::super::decoder::AttentionKind) {}",
            "#[cfg(test)] mod tests { use crate::decoder::Block; }",
        ] {
            assert_eq!(found(attention, "").len(), 1, "{attention}");
        }
        let line = found("\n\nuse crate::decoder::Block;", "");
        assert_eq!(
            line,
            [
                "crates/mla-core/src/attention/rope.rs:3: names `decoder::Block`; attention does not know the decoder"
            ]
        );
    }

    #[test]
    fn a_rule_that_lost_its_subject_says_so() {
        assert_eq!(check(&Tree::default()).len(), 1);
        let moved =
            Tree::of(&[(CONFIGS[0], CONFIG), (CONFIGS[1], LATENTS), ("crates/mla-core/src/lib.rs", LIB)]);
        assert_eq!(check(&moved).len(), 2);
    }
}
