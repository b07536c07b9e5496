//! Writing a converted model: the donor's folder with latent tensors in place of `W_k` and `W_v`.
//!
//! How the folder appears whole or not at all is [`Output`]'s business.

use std::borrow::Cow;
use std::collections::HashMap;
use std::path::Path;

use mla_core::{Patch, Slot};
use safetensors::{SafeTensorError, View};
use serde_json::{Map, Value, json};

use crate::carried::{carried, is_carried, read_companion};
use crate::checkpoint::Dtype;
use crate::error::Error;
use crate::mla::MlaSection;
use crate::model::Model;
use crate::output::{Output, sync};
use crate::quantised;
use crate::spec::{Layout, TensorSpec};

/// Where the model came from, what was done to it, and which files belong to it.
pub(crate) const RECORD: &str = "shrink.json";

/// What to write.
pub struct FolderPlan<'a> {
    /// The model that was converted, or a converted one whose factors were trained.
    pub donor: &'a Model,
    /// Method, objective and ranks; of a converted model its own.
    pub section: MlaSection,
    /// The factors of every latent layer, with the converted graph as their configuration. Each is fetched when its turn
    /// to be written comes.
    pub factors: &'a dyn Patch,
    /// The type of every tensor; `None` keeps the donor's types and stores the factors as f32, since rounding would
    /// cost `W_up` its orthonormal columns.
    pub dtype: Option<Dtype>,
    /// Further files, by name: the model card, the provenance. To `shrink.json`, an object, the list of all files is added; without
    /// one it holds that alone.
    pub extra: Vec<(String, Vec<u8>)>,
    /// Bytes of one shard at most (one tensor may exceed it).
    pub max_shard_bytes: u64,
}

/// What was written.
#[derive(Clone, Debug)]
pub struct Written {
    /// Bytes of the weight files.
    pub weight_bytes: u64,
    /// Number of tensors.
    pub tensors: usize,
}

/// Writes a converted model folder. `on_bytes` hears of progress: bytes done, bytes in all.
///
/// # Errors
/// When a weight is not finite or overflows the type, a factor cannot be fetched, or the disk fails. Nothing is left behind then, and an existing
/// folder is as it was.
///
/// # Panics
/// If a latent layer lacks a factor, a factor has another size than the section says, or one is given for a part of a
/// fused tensor that stays fused.
pub fn write_folder(
    plan: &FolderPlan<'_>,
    output: Output,
    on_bytes: &(dyn Fn(u64, u64) + Sync),
) -> Result<Written, Error> {
    let tensors = plan.tensors()?;
    output.write("config.json", &plan.config_json())?;
    let written = write_weights(plan, &tensors, &output, on_bytes)?;
    for name in carried(plan.donor.folder())? {
        if let Some(bytes) = read_companion(plan.donor.folder(), &name)? {
            output.write(&name, &bytes)?;
        }
    }
    for (name, bytes) in plan.extra.iter().filter(|(name, _)| name != RECORD) {
        output.write(name, bytes)?;
    }
    output.write(RECORD, &plan.record(output.path())?)?;
    output.publish()?;
    Ok(written)
}

/// Whether a file of this name is of a kind that is written, whatever the model.
pub(crate) fn is_kind(name: &str) -> bool {
    let is_shard = || {
        let (number, count) =
            name.strip_prefix("model-")?.strip_suffix(".safetensors")?.split_once("-of-")?;
        [number, count].iter().all(|digits| digits.parse::<u32>().is_ok()).then_some(())
    };
    let own = ["config.json", RECORD, "README.md", "model.safetensors", "model.safetensors.index.json"];
    own.contains(&name) || is_carried(name) || is_shard().is_some()
}

/// One tensor to be written.
struct Pending<'a> {
    key: String,
    shape: Vec<usize>,
    dtype: Dtype,
    source: Source<'a>,
}

enum Source<'a> {
    /// Copied from the donor's file, converted where the types differ.
    Donor { key: &'a str },
    /// Read slot by slot from the donor: cut out of a fused tensor, `[d_out, d_in]`.
    Slot(Slot),
    /// A factor, `[d_out, d_in]`, stored in a layout.
    Factor(&'a dyn Patch, Slot, Layout),
}

impl FolderPlan<'_> {
    fn tensors(&self) -> Result<Vec<Pending<'_>>, Error> {
        // A folder with this very section has the tensors that it will have: training changes their values only.
        let specs = match self.donor.section() == Some(&self.section) {
            true => self.donor.specs().to_vec(),
            false => self.section.tensors(self.donor.specs(), self.factors.config()),
        };
        let donor: HashMap<Slot, &TensorSpec> =
            self.donor.specs().iter().map(|spec| (spec.slot, spec)).collect();
        let mut seen = std::collections::HashSet::new();
        let mut tensors = Vec::new();
        for spec in specs {
            let factor = self.factors.shape(spec.slot);
            if let Some([rows, cols]) = factor {
                let fits = spec.outputs.is_none() && rows * cols == spec.shape.iter().product::<usize>();
                assert!(fits, "{}: the factor for {} is no whole tensor of that shape", spec.key, spec.slot);
            }
            if !seen.insert(spec.key.clone()) {
                continue;
            }
            let (source, stored) = match (factor, donor.get(&spec.slot)) {
                (Some(_), _) => (Source::Factor(self.factors, spec.slot, spec.layout), Dtype::F32),
                (None, Some(original)) if original.key == spec.key => {
                    (Source::Donor { key: &original.key }, self.stored_dtype(&original.key)?)
                }
                (None, Some(original)) => (Source::Slot(spec.slot), self.stored_dtype(&original.key)?),
                (None, None) => panic!("{}: a latent layer has no factor for {}", spec.key, spec.slot),
            };
            let dtype = self.dtype.unwrap_or(stored);
            tensors.push(Pending { key: spec.key, shape: spec.shape, dtype, source });
        }
        Ok(tensors)
    }

    fn stored_dtype(&self, key: &str) -> Result<Dtype, Error> {
        let checkpoint = self.donor.checkpoint();
        let tensor = checkpoint.get(key).expect("the donor's tensors were found when it was opened");
        checkpoint.dtype(key, tensor)
    }

    /// The record that was given, or an empty one, with the files that lie in `folder` beside it: another run may replace a
    /// folder of these and no others.
    fn record(&self, folder: &Path) -> Result<Vec<u8>, Error> {
        let given = self.extra.iter().find(|(name, _)| name == RECORD);
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

    /// The donor's configuration with the `mla` section and, where it was changed, the type. What is written is not quantised,
    /// whatever the donor's says.
    fn config_json(&self) -> Vec<u8> {
        let mut fields: Map<String, Value> = self.donor.json().fields().clone();
        quantised::remove_declaration(&mut fields);
        if let Some(dtype) = self.dtype {
            fields.shift_remove("dtype");
            fields.insert("torch_dtype".into(), dtype.torch_name().into());
        }
        fields.insert("mla".into(), json!(self.section));
        pretty(&Value::Object(fields))
    }
}

impl Pending<'_> {
    fn bytes(&self) -> u64 {
        (self.shape.iter().product::<usize>() * self.dtype.bytes()) as u64
    }

    /// The tensor's bytes in its type; checked to be finite and to fit.
    fn encode(&self, donor: &Model) -> Result<Vec<u8>, Error> {
        match &self.source {
            Source::Factor(factors, slot, layout) => {
                let unreadable = |source| Error::Factor { slot: slot.to_string(), source };
                let matrix = factors
                    .get(*slot)
                    .and_then(|matrix| matrix.ok_or_else(|| "it is not there any more".into()))
                    .map_err(unreadable)?;
                let expected = self.shape.iter().product::<usize>();
                assert_eq!(
                    matrix.data.len(),
                    expected,
                    "{}: the factor for {slot} changed its size",
                    self.key
                );
                check_finite(donor, &self.key, &matrix.data)?;
                self.cast(&in_layout(&matrix.data, [matrix.rows, matrix.cols], *layout))
            }
            Source::Slot(slot) => {
                let (values, spec) = donor.read(*slot)?;
                let [d_out, d_in] = spec.slot_shape();
                match spec.layout {
                    Layout::OutIn => self.cast(&values),
                    Layout::InOut => self.cast(&transpose(&values, d_in, d_out)),
                }
            }
            Source::Donor { key } => {
                let checkpoint = donor.checkpoint();
                let tensor = checkpoint.get(key).expect("the donor's tensors were found when it was opened");
                let stored = checkpoint.dtype(key, tensor)?;
                let bytes = checkpoint.read(tensor)?;
                if let Some((index, value)) = stored.first_not_finite(&bytes) {
                    return Err(donor.not_finite(key, index, value));
                }
                if stored == self.dtype {
                    return Ok(bytes);
                }
                let mut values = Vec::with_capacity(bytes.len() / stored.bytes());
                stored.decode(&bytes, &mut values);
                self.cast(&values)
            }
        }
    }

    fn cast(&self, values: &[f32]) -> Result<Vec<u8>, Error> {
        let overflow = |value| Error::Overflow { key: self.key.clone(), value, dtype: self.dtype.name() };
        self.dtype.encode(values).map_err(overflow)
    }
}

fn check_finite(donor: &Model, key: &str, values: &[f32]) -> Result<(), Error> {
    match values.iter().position(|v| !v.is_finite()) {
        None => Ok(()),
        Some(index) => Err(donor.not_finite(key, index, values[index])),
    }
}

/// A `[d_out, d_in]` matrix as a layout stores it.
fn in_layout(values: &[f32], [d_out, d_in]: [usize; 2], layout: Layout) -> Cow<'_, [f32]> {
    match layout {
        Layout::OutIn => Cow::Borrowed(values),
        Layout::InOut => Cow::Owned(transpose(values, d_out, d_in)),
    }
}

/// `[rows, cols]` → `[cols, rows]`, row-major.
fn transpose(values: &[f32], rows: usize, cols: usize) -> Vec<f32> {
    (0..cols).flat_map(|c| (0..rows).map(move |r| values[r * cols + c])).collect()
}

/// Lets the safetensors writer ask for each tensor when its turn comes, so that one is in memory at a time.
///
/// The writer's interface cannot fail while it takes data, so the first error is kept aside and zeros are written in
/// its place; the file is then discarded.
struct Lazy<'a> {
    tensor: &'a Pending<'a>,
    donor: &'a Model,
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
            false => Some(self.tensor.encode(self.donor)),
        };
        (self.on_done)(self.tensor.bytes());
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
        self.tensor.bytes() as usize
    }
}

fn write_weights(
    plan: &FolderPlan<'_>,
    tensors: &[Pending<'_>],
    output: &Output,
    on_bytes: &(dyn Fn(u64, u64) + Sync),
) -> Result<Written, Error> {
    let total: u64 = tensors.iter().map(Pending::bytes).sum();
    let done = std::cell::Cell::new(0);
    let on_done = |bytes| {
        done.set(done.get() + bytes);
        on_bytes(done.get(), total);
    };
    let failure = std::cell::RefCell::new(None);
    let shards = split(tensors, plan.max_shard_bytes);
    let name = |number: usize| match shards.len() {
        1 => "model.safetensors".to_owned(),
        count => format!("model-{:05}-of-{count:05}.safetensors", number + 1),
    };
    let mut weight_map = Map::new();
    for (number, shard) in shards.iter().enumerate() {
        let path = output.path().join(name(number));
        let views = shard.iter().map(|&tensor| {
            (tensor.key.as_str(), Lazy { tensor, donor: plan.donor, failure: &failure, on_done: &on_done })
        });
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
    Ok(Written { weight_bytes: total, tensors: tensors.len() })
}

/// Consecutive tensors in shards of at most `max` bytes.
fn split<'a>(tensors: &'a [Pending<'a>], max: u64) -> Vec<Vec<&'a Pending<'a>>> {
    let mut shards: Vec<Vec<&Pending<'_>>> = vec![Vec::new()];
    let mut room = max;
    for tensor in tensors {
        let bytes = tensor.bytes();
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
