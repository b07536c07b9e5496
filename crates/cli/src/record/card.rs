//! The model card of a folder: what it is, what was measured, how it is run.

use handlers::hub::looks_like_path;
use handlers::read_companion;
use mla_core::DecoderConfig;
use train::eval::cache_sizes;

use super::file::Record;
use super::token_bytes;
use crate::report;

/// The file's name.
pub const CARD: &str = "README.md";
/// Tokens of the context whose cache is stated.
const TOKENS: usize = 4096;

/// A row of the table: what, and how much.
pub type Measured = (String, String);

/// The card of a converted or trained folder.
///
/// `from` is the folder whose licence it is under: the donor's, or the converted model's that was trained. `measured` are figures of
/// this very model; of a trained one none from before.
///
/// # Errors
/// When the card of that folder cannot be read.
pub fn card(
    record: &Record,
    config: &DecoderConfig,
    from: &std::path::Path,
    measured: &[Measured],
) -> anyhow::Result<String> {
    let name = record.donor.as_ref().map_or("", |donor| donor.name.as_str());
    // A path is nobody's business but the user's; `shrink.json` keeps it for reproduction.
    let base = (!name.is_empty() && !looks_like_path(name)).then(|| id_of(name));
    let title = base.unwrap_or_else(|| short(name));
    let title = if title.is_empty() { "model" } else { title };
    let mut front: Vec<String> = base.iter().map(|id| format!("base_model: \"{id}\"")).collect();
    front.extend(licence(from)?);
    front.extend(["library_name: transformers", "pipeline_tag: text-generation", "tags:"].map(str::to_owned));
    front.extend(["- shrink", "- mla", "- kv-cache"].map(str::to_owned));
    let (a_token, dtype) = token_bytes(config);
    let size = cache_sizes(&a_token, &[TOKENS], 1)[0];
    let text = match (record.calibration["tokens"].as_u64(), record.calibration["source"].as_str()) {
        (Some(tokens), Some(source)) => {
            let names: Vec<&str> = source.split(", ").map(short).collect();
            format!("{tokens} tokens of {}", names.join(", "))
        }
        _ => "none (plain SVD of the weights)".into(),
    };
    let of = |field: &Option<String>| field.clone().unwrap_or_else(|| "-".into());
    let mut rows = vec![
        ("base model".to_owned(), title.to_owned()),
        (
            "method, objective, ranks".to_owned(),
            format!("{}, {}, {}", of(&record.method), of(&record.objective), of(&record.ranks)),
        ),
        ("calibration".to_owned(), text),
        (
            format!("cache of {TOKENS} tokens, {dtype}"),
            format!("{} (base model {})", report::bytes(size.model_bytes), report::bytes(size.donor_bytes)),
        ),
    ];
    rows.extend_from_slice(measured);
    let rows: String = rows.iter().map(|(what, much)| format!("| {what} | {much} |\n")).collect();
    Ok(format!(
        "---\n{front}\n---\n\n# {title}, KV cache {ratio:.2}x smaller\n\n\
         {title} with Multi-Head Latent Attention in the place of its own: the cache holds latents, from which keys and values are \
         rebuilt. Made by shrink {version}.\n\n\
         | | |\n|---|---|\n{rows}\n\
         ## Run it\n\n\
         With transformers 4.56 or newer and nothing else installed; the code is in this folder:\n\n\
         ```python\n\
         from transformers import AutoModelForCausalLM, AutoTokenizer\n\n\
         model = AutoModelForCausalLM.from_pretrained(\"FOLDER\", trust_remote_code=True)\n\
         tokenizer = AutoTokenizer.from_pretrained(\"FOLDER\", trust_remote_code=True)\n\
         ```\n\n\
         With vLLM and shrink's plugin for it (`python/shrink-vllm`), and with shrink:\n\n\
         ```sh\n\
         vllm serve FOLDER\n\
         shrink generate FOLDER --prompt \"The capital of France is\"\n\
         shrink eval FOLDER --data heldout.txt --against BASE_MODEL\n\
         ```\n\n\
         The record of every layer is in `shrink.json`. The base model's licence applies.\n",
        front = front.join("\n"),
        ratio = calib::cache_ratio(config),
        version = env!("CARGO_PKG_VERSION"),
    ))
}

/// What the card of a folder says of its licence, line by line.
fn licence(folder: &std::path::Path) -> Result<Vec<String>, handlers::Error> {
    let bytes = read_companion(folder, CARD)?.unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let mut lines = text.lines();
    if lines.next().map(str::trim) != Some("---") {
        return Ok(Vec::new());
    }
    let front = lines.take_while(|line| line.trim() != "---");
    let of_licence =
        |line: &&str| ["license:", "license_name:", "license_link:"].iter().any(|key| line.starts_with(key));
    Ok(front.filter(of_licence).map(|line| line.trim_end().to_owned()).collect())
}

/// The id in `org/name@commit`.
fn id_of(name: &str) -> &str {
    name.split('@').next().unwrap_or(name)
}

/// The last part of a text's name; of a data set at some revision, which may have slashes, its id's.
fn short(source: &str) -> &str {
    let name = match looks_like_path(source) {
        true => source,
        false => source.split('@').next().unwrap_or(source),
    };
    name.rsplit('/').next().unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    #[test]
    fn a_text_is_named_without_its_folders_and_a_data_set_without_its_revision() {
        for (source, name) in [
            ("builtin", "builtin"),
            ("/home/u/a@b/text.txt", "text.txt"),
            ("./text@2/all.jsonl", "all.jsonl"),
            ("Salesforce/wikitext", "wikitext"),
            ("org/pile@refs/convert/parquet", "pile"),
        ] {
            assert_eq!(short(source), name);
        }
    }

    #[test]
    fn a_licence_is_taken_over_as_it_is_spelled() {
        let folder = tempfile::tempdir().expect("a folder");
        let read = |text: &str| {
            std::fs::write(folder.path().join(CARD), text).expect("a file");
            licence(folder.path()).expect("a card")
        };
        let other = "---\nlanguage: en\nlicense: other\nlicense_name: gemma\nlicense_link: LICENSE\n---\n# X\nlicense: no\n";
        assert_eq!(read(other), ["license: other", "license_name: gemma", "license_link: LICENSE"]);
        assert_eq!(read("# X\n\nlicense: mit\n"), Vec::<String>::new());
        assert_eq!(read(""), Vec::<String>::new());
    }
}
