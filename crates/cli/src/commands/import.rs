//! `shrink import`.

use calib::linalg::{Mat64, qr};
use handlers::{Existing, Imported, Output};
use mla_core::Matrix;
use serde_json::{Map, Value, json};

use crate::args::ImportArgs;
use crate::convert::{MAX_SHARD_BYTES, write_shown};
use crate::record::{RECORD, Record};
use crate::report::bytes;
use crate::session::Session;

/// Brings a folder of DeepSeek's layout, tuned elsewhere, into our form.
pub fn run(session: &Session, args: &ImportArgs) -> anyhow::Result<()> {
    let imported = Imported::open(&args.folder, &session.registry)?;
    let config = imported.config();
    let record = Record {
        shrink_version: env!("CARGO_PKG_VERSION").into(),
        method: Some("deepseek".into()),
        compression_ratio: Some(config.compression_ratio()),
        other: Map::from_iter([("import".to_owned(), json!({ "from": args.folder }))]),
        ..Record::default()
    };
    let record = (RECORD.to_owned(), format!("{:#}\n", serde_json::to_value(&record)?).into_bytes());
    let split = |up: &Matrix| {
        let (q, r) = qr(&Mat64::from_matrix(up));
        [q.to_matrix(), r.to_matrix()]
    };
    let existing = if args.force { Existing::Replace } else { Existing::Keep };
    let output = Output::prepare(&args.output, existing, &args.folder)?;
    let written = write_shown(session, &imported.plan(&split, vec![record], MAX_SHARD_BYTES), output)?;
    let numbers = config.cache_bytes(1) / size_of::<f32>();
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
