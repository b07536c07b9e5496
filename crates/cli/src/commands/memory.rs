//! `shrink memory`.

use std::path::Path;

use calib::{Method, Width, uniform_latents};
use handlers::{Registry, read_config};
use mla_core::{CacheDtype, DecoderConfig};
use serde_json::{Value, json};
use train::eval::{CacheSize, TokenBytes, cache_sizes};

use crate::args::MemoryArgs;
use crate::error::UserError;
use crate::report::{bytes, table};
use crate::session::Session;

/// Tabulates cache sizes.
pub fn run(session: &Session, args: &MemoryArgs) -> anyhow::Result<()> {
    let config = config(&session.registry, &session.find_config(&args.model)?, args.compression_ratio)?;
    let (object, text) = report(config.clone(), args)?;
    if config.compression_ratio() == 1.0 && args.compression_ratio.is_none() {
        session
            .ui
            .note("note: this model is not compressed; --compression-ratio shows what a ratio would save");
    }
    session.print(&object, &text)
}

/// The graph of a configuration, or what a ratio would make of it.
pub(super) fn config(registry: &Registry, path: &Path, ratio: Option<f64>) -> anyhow::Result<DecoderConfig> {
    let (_, config, _) = read_config(path, registry)?;
    match ratio {
        None => Ok(config),
        Some(ratio) => Ok(uniform_latents(&config, Method::Separate, Width::Ratio(ratio))?),
    }
}

/// The table: for `--json`, and for people.
pub(super) fn report(mut config: DecoderConfig, args: &MemoryArgs) -> anyhow::Result<(Value, String)> {
    let element_bytes = args.dtype.dtype().bytes();
    if let Some(dtype) = args.cache_dtype {
        config.cache_dtype = dtype.dtype();
    }
    // A folder that says nothing is counted in the standard cache's type.
    let own = args.cache_dtype.is_some() || config.cache_dtype != CacheDtype::F32;
    let (a_token, dtype) = match own {
        true => (TokenBytes::allocated(&config, element_bytes), config.cache_dtype.name()),
        false => (TokenBytes::plain(&config, element_bytes), args.dtype.dtype().name()),
    };
    let has_latents = (0..config.n_layers()).any(|layer| config.latent(layer).is_some());
    if config.cache_dtype.bits().is_some() && !has_latents {
        return Err(UserError::NoLatents { dtype: config.cache_dtype.name() }.into());
    }
    let sizes = cache_sizes(&a_token, &args.sequence_lengths, args.batch_size);
    // A product that is too large stops at the largest number there is.
    if let Some(size) = sizes.iter().find(|size| size.donor_bytes.max(size.model_bytes) == u64::MAX) {
        let (flag, found) = match args.batch_size > size.tokens {
            true => ("--batch-size", args.batch_size),
            false => ("--sequence-lengths", size.tokens),
        };
        let expected = "a cache of fewer than 2^64 bytes".into();
        return Err(UserError::Flag { flag, found: found.to_string(), expected }.into());
    }
    let saved = |size: &CacheSize| size.donor_bytes.saturating_sub(size.model_bytes);
    let object = json!({
        "compression_ratio": config.compression_ratio(),
        "batch_size": args.batch_size,
        "dtype": args.dtype.dtype().name(),
        "cache_dtype": dtype,
        "sizes": sizes.iter().map(|size| json!({
            "tokens": size.tokens,
            "donor_bytes": size.donor_bytes,
            "model_bytes": size.model_bytes,
            "saved_bytes": saved(size),
        })).collect::<Vec<_>>(),
    });
    let row = |size: &CacheSize| {
        vec![size.tokens.to_string(), bytes(size.donor_bytes), bytes(size.model_bytes), bytes(saved(size))]
    };
    let rows: Vec<_> = sizes.iter().map(row).collect();
    let text = format!(
        "KV cache at {:.2}x, batch {}, {}{}:\n{}",
        a_token.donor as f64 / a_token.model as f64,
        args.batch_size,
        args.dtype.dtype().name(),
        if own { format!(", latents {dtype}") } else { String::new() },
        table(&["tokens", "standard", "latent", "saved"], &rows)
    );
    Ok((object, text))
}
