//! `shrink import`.

use calib::linalg::{Mat64, qr};
use calib::{DEFAULT_MEMORY_BYTES, Scratch};
use handlers::{ConfigJson, Existing, FolderLayout, FolderPlan, Imported, Model, Output, Tokenizer};
use mla_core::{DecoderConfig, Matrix, WeightSource};
use serde_json::{Value, json};

use crate::args::ImportArgs;
use crate::convert::{MAX_SHARD_BYTES, write_shown};
use crate::error::UserError;
use crate::record::{CARD, RECORD, Record, card};
use crate::report::bytes;
use crate::session::Session;

/// Brings a folder that another program tuned into our form: of DeepSeek's layout, or ours as transformers saves it.
pub fn run(session: &Session, args: &ImportArgs) -> anyhow::Result<()> {
    let config = ConfigJson::read(&args.folder.join("config.json"))?;
    match config.get("mla") {
        Some(_) => ours(session, args),
        None => deepseeks(session, args),
    }
}

/// Every weight as it was tuned, `W_up` with orthonormal columns.
fn ours(session: &Session, args: &ImportArgs) -> anyhow::Result<()> {
    let model = Model::open(&args.folder, &session.registry)?;
    if let [first, ..] = model.unused() {
        return Err(UserError::NotOfTheModel { key: first.clone() }.into());
    }
    // A run that saves its model alone leaves a folder that nobody can talk to.
    Tokenizer::open(&args.folder)?;
    let scratch = Scratch::new(DEFAULT_MEMORY_BYTES, std::env::temp_dir());
    let factors = calib::orthonormalise(&model, &session.device, &scratch)?;
    let section = model.section().expect("a converted folder has one").clone();
    let known = Record::read(&args.folder)?.unwrap_or_default();
    let extra = imported(args, &section.method, model.config(), known)?;
    let plan = FolderPlan {
        donor: &model,
        section,
        factors: &factors,
        dtype: None,
        extra,
        max_shard_bytes: MAX_SHARD_BYTES,
    };
    write(session, args, &plan, model.config())
}

/// Each query head's keys and values apart, as a run may have moved them.
fn deepseeks(session: &Session, args: &ImportArgs) -> anyhow::Result<()> {
    let imported_folder = Imported::open(&args.folder, &session.registry)?;
    let config = imported_folder.config();
    let extra = imported(args, "deepseek", config, Record::default())?;
    let split = |up: &Matrix| {
        let (q, r) = qr(&Mat64::from_matrix(up));
        [q.to_matrix(), r.to_matrix()]
    };
    write(session, args, &imported_folder.plan(&split, extra, MAX_SHARD_BYTES), config)
}

/// What is known of a folder and still holds, and its card.
fn imported(
    args: &ImportArgs,
    method: &str,
    config: &DecoderConfig,
    known: Record,
) -> anyhow::Result<Vec<(String, Vec<u8>)>> {
    let mut record = Record {
        shrink_version: env!("CARGO_PKG_VERSION").into(),
        method: Some(method.into()),
        compression_ratio: Some(config.compression_ratio()),
        ..known.of_other_weights()
    };
    record.other.shift_remove("files");
    record.other.insert("import".to_owned(), json!({ "from": args.folder }));
    let tuned = ("trained".to_owned(), "by another program, brought in by shrink import".to_owned());
    let card = card(&record, config, &args.folder, &[tuned])?;
    Ok(vec![(RECORD.to_owned(), record.bytes()), (CARD.to_owned(), card.into_bytes())])
}

fn write(
    session: &Session,
    args: &ImportArgs,
    plan: &dyn FolderLayout,
    config: &DecoderConfig,
) -> anyhow::Result<()> {
    let existing = if args.force { Existing::Replace } else { Existing::Keep };
    let output = Output::prepare(&args.output, existing, &args.folder)?;
    let written = write_shown(session, plan, output)?;
    let numbers = config.cached_numbers_total();
    let object: Value = json!({
        "output": args.output,
        "tensors": written.tensors,
        "weight_bytes": written.weight_bytes,
        "layers": config.n_layers(),
        "cached_numbers_a_token": numbers,
    });
    let text = format!(
        "wrote {}: {} tensors, {}\n{} layers, {numbers} cached numbers a token\n",
        args.output.display(),
        written.tensors,
        bytes(written.weight_bytes),
        config.n_layers(),
    );
    session.print(&object, &text)?;
    Ok(())
}
