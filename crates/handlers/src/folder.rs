//! Writing a folder that a [`FolderLayout`] describes.
//!
//! How the folder appears whole or not at all is [`Output`]'s business.

use std::borrow::Cow;
use std::collections::HashMap;
use std::path::Path;

use safetensors::{SafeTensorError, View};
use serde_json::{Map, Value, json};

use crate::carried::{carried, is_carried, read_companion};
use crate::error::Error;
use crate::gguf;
use crate::layout::{Container, Encoded, FolderLayout};
use crate::mla::identity;
use crate::output::{Output, sync};

/// Where the model came from, what was done to it, and which files belong to it.
pub(crate) const RECORD: &str = "shrink.json";
/// The file of a model in one file.
const GGUF: &str = "model.gguf";

/// What was written.
#[derive(Clone, Debug)]
pub struct Written {
    /// Bytes of the weight files.
    pub weight_bytes: u64,
    /// Number of tensors.
    pub tensors: usize,
}

/// Writes a folder, whole or not at all. `on_bytes` hears of progress: bytes done, bytes in all.
///
/// # Errors
/// When a weight is not finite or overflows the type, a factor cannot be fetched, or the disk fails. Nothing is left behind then, and an existing
/// folder is as it was.
///
/// # Panics
/// As [`FolderLayout::tensors`].
pub fn write_folder(
    layout: &dyn FolderLayout,
    output: Output,
    on_bytes: &(dyn Fn(u64, u64) + Sync),
) -> Result<Written, Error> {
    let tensors = layout.tensors()?;
    let weight_bytes: u64 = tensors.iter().map(Encoded::size).sum();
    let done = std::cell::Cell::new(0);
    let on_done = |bytes| {
        done.set(done.get() + bytes);
        on_bytes(done.get(), weight_bytes);
    };
    match layout.container() {
        Container::Safetensors { config, max_shard_bytes } => {
            output.write("config.json", &pretty(&Value::Object(config)))?;
            write_weights(&tensors, max_shard_bytes, &output, weight_bytes, &on_done)?;
        }
        Container::Gguf { metadata } => {
            gguf::write(&output.path().join(GGUF), &metadata, &tensors, &on_done)?
        }
    }
    for name in carried(layout.companions())? {
        if let Some(bytes) = read_companion(layout.companions(), &name)? {
            output.write(&name, &bytes)?;
        }
    }
    for (name, source) in layout.code() {
        output.write(name, source.as_bytes())?;
    }
    for (name, bytes) in layout.extras().iter().filter(|(name, _)| name != RECORD) {
        output.write(name, bytes)?;
    }
    output.write(RECORD, &record(layout.extras(), output.path())?)?;
    output.publish()?;
    Ok(Written { weight_bytes, tensors: tensors.len() })
}

/// Whether a file of this name is of a kind that is written, whatever the model.
pub(crate) fn is_kind(name: &str) -> bool {
    let is_shard = || {
        let (number, count) =
            name.strip_prefix("model-")?.strip_suffix(".safetensors")?.split_once("-of-")?;
        [number, count].iter().all(|digits| digits.parse::<u32>().is_ok()).then_some(())
    };
    let own = ["config.json", RECORD, "README.md", GGUF, "model.safetensors", "model.safetensors.index.json"];
    let is_code = identity::CODE.iter().any(|(code, _)| *code == name);
    own.contains(&name) || is_code || is_carried(name) || is_shard().is_some()
}

/// The record that was given, or an empty one, with the files that lie in `folder` beside it: another run may replace a
/// folder of these and no others.
fn record(extras: &[(String, Vec<u8>)], folder: &Path) -> Result<Vec<u8>, Error> {
    let given = extras.iter().find(|(name, _)| name == RECORD);
    let mut fields: Map<String, Value> = match given {
        None => Map::new(),
        Some((_, bytes)) => serde_json::from_slice(bytes)
            .map_err(|source| Error::Json { path: folder.join(RECORD), source })?,
    };
    let entries = std::fs::read_dir(folder).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let entries = entries.map_err(Error::io("read", folder))?;
    let mut files: Vec<String> =
        entries.iter().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    files.push(RECORD.into());
    files.sort();
    fields.insert("files".into(), json!(files));
    Ok(pretty(&Value::Object(fields)))
}

/// Lets the safetensors writer ask for each tensor when its turn comes, so that one is in memory at a time.
///
/// The writer's interface cannot fail while it takes data, so the first error is kept aside and zeros are written in
/// its place; the file is then discarded.
struct Lazy<'a> {
    tensor: &'a Encoded<'a>,
    failure: &'a std::cell::RefCell<Option<Error>>,
    on_done: &'a dyn Fn(u64),
}

impl View for Lazy<'_> {
    fn dtype(&self) -> safetensors::Dtype {
        self.tensor.dtype.to_safetensors()
    }

    fn shape(&self) -> &[usize] {
        &self.tensor.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let encoded = match self.failure.borrow().is_some() {
            true => None,
            false => Some((self.tensor.bytes)()),
        };
        (self.on_done)(self.tensor.size());
        match encoded {
            Some(Ok(bytes)) => Cow::Owned(bytes),
            Some(Err(error)) => {
                *self.failure.borrow_mut() = Some(error);
                Cow::Owned(vec![0; self.data_len()])
            }
            None => Cow::Owned(vec![0; self.data_len()]),
        }
    }

    fn data_len(&self) -> usize {
        self.tensor.size() as usize
    }
}

fn write_weights(
    tensors: &[Encoded<'_>],
    max_shard_bytes: u64,
    output: &Output,
    total: u64,
    on_done: &dyn Fn(u64),
) -> Result<(), Error> {
    let failure = std::cell::RefCell::new(None);
    let shards = split(tensors, max_shard_bytes);
    let name = |number: usize| match shards.len() {
        1 => "model.safetensors".to_owned(),
        count => format!("model-{:05}-of-{count:05}.safetensors", number + 1),
    };
    let mut weight_map = Map::new();
    for (number, shard) in shards.iter().enumerate() {
        let path = output.path().join(name(number));
        let views =
            shard.iter().map(|&tensor| (tensor.key.as_str(), Lazy { tensor, failure: &failure, on_done }));
        let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
        let result = safetensors::serialize_to_file(views, Some(metadata), &path);
        if let Some(error) = failure.take() {
            return Err(error);
        }
        result.map_err(|e| write_error(e, &path))?;
        share(&path, &output.path().join("config.json"))?;
        sync(&path)?;
        weight_map.extend(shard.iter().map(|tensor| (tensor.key.clone(), name(number).into())));
    }
    if shards.len() > 1 {
        let index = json!({ "metadata": { "total_size": total }, "weight_map": weight_map });
        output.write("model.safetensors.index.json", &pretty(&index))?;
    }
    Ok(())
}

/// Consecutive tensors in shards of at most `max` bytes.
fn split<'a>(tensors: &'a [Encoded<'a>], max: u64) -> Vec<Vec<&'a Encoded<'a>>> {
    let mut shards: Vec<Vec<&Encoded<'_>>> = vec![Vec::new()];
    let mut room = max;
    for tensor in tensors {
        let bytes = tensor.size();
        if bytes > room && shards.last().is_some_and(|shard| !shard.is_empty()) {
            shards.push(Vec::new());
            room = max;
        }
        room = room.saturating_sub(bytes);
        if let Some(shard) = shards.last_mut() {
            shard.push(tensor);
        }
    }
    shards
}

fn write_error(error: SafeTensorError, path: &Path) -> Error {
    match error {
        SafeTensorError::IoError(source) => Error::Io { action: "write", path: path.into(), source },
        other => Error::BadSafetensors { path: path.into(), reason: other.to_string() },
    }
}

fn pretty(value: &Value) -> Vec<u8> {
    let mut text = format!("{value:#}");
    text.push('\n');
    text.into_bytes()
}

/// Gives a file the permissions of another: the safetensors writer makes its files private.
fn share(path: &Path, like: &Path) -> Result<(), Error> {
    let permissions = std::fs::metadata(like).map_err(Error::io("read", like))?.permissions();
    std::fs::set_permissions(path, permissions).map_err(Error::io("set permissions of", path))
}
