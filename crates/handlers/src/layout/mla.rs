//! Our own layout: the donor's folder with latent tensors in place of `W_k` and `W_v`.

use std::borrow::Cow;
use std::collections::HashMap;
use std::path::Path;

use mla_core::{Patch, Slot};
use serde_json::{Map, Value, json};

use super::{Container, Encoded, FolderLayout, cast, check_finite, read, stored, transpose};
use crate::checkpoint::Dtype;
use crate::error::Error;
use crate::mla::{MlaSection, identity};
use crate::model::Model;
use crate::quantised;
use crate::spec::{Layout, TensorSpec};

/// A converted model to write.
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
    /// Further files, by name.
    pub extra: Vec<(String, Vec<u8>)>,
    /// Bytes of one shard at most (one tensor may exceed it).
    pub max_shard_bytes: u64,
}

impl FolderPlan<'_> {
    /// The donor's configuration, of its text model where it has others beside it, with the `mla` section and, where it was changed, the type. What is written is not quantised,
    /// whatever the donor's says.
    fn config(&self) -> Map<String, Value> {
        let mut fields = text_model(self.donor.json().fields());
        quantised::remove_declaration(&mut fields);
        if let Some(dtype) = self.dtype {
            fields.shift_remove("dtype");
            fields.insert("torch_dtype".into(), dtype.torch_name().into());
        }
        let mut section = json!(self.section);
        identity::take_name(&mut fields, &mut section);
        fields.insert("mla".into(), section);
        fields
    }
}

impl FolderLayout for FolderPlan<'_> {
    fn container(&self) -> Container {
        Container::Safetensors { config: self.config(), max_shard_bytes: self.max_shard_bytes }
    }

    /// # Panics
    /// If a latent layer lacks a factor, a factor has another size than the section says, or one is given for a part of a
    /// fused tensor that stays fused.
    fn tensors(&self) -> Result<Vec<Encoded<'_>>, Error> {
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
            let tensor = match (factor, donor.get(&spec.slot)) {
                (Some(_), _) => self.factor(spec),
                (None, Some(original)) if original.key == spec.key => self.copied(spec)?,
                (None, Some(original)) => self.cut_out(spec, &original.key)?,
                (None, None) => panic!("{}: a latent layer has no factor for {}", spec.key, spec.slot),
            };
            tensors.push(Encoded { key: text_key(&tensor.key), ..tensor });
        }
        Ok(tensors)
    }

    fn extras(&self) -> &[(String, Vec<u8>)] {
        &self.extra
    }

    fn code(&self) -> &[(&str, &str)] {
        &identity::CODE
    }

    fn companions(&self) -> &Path {
        self.donor.folder()
    }
}

impl FolderPlan<'_> {
    fn stored_dtype(&self, key: &str) -> Result<Dtype, Error> {
        let checkpoint = self.donor.checkpoint();
        let tensor = checkpoint.get(key).expect("the donor's tensors were found when it was opened");
        Ok(self.dtype.unwrap_or(checkpoint.dtype(key, tensor)?))
    }

    /// Copied from the donor's file, converted where the types differ.
    fn copied(&self, spec: TensorSpec) -> Result<Encoded<'_>, Error> {
        let dtype = self.stored_dtype(&spec.key)?;
        let key = spec.key.clone();
        let bytes = Box::new(move || stored(self.donor, &key, dtype));
        Ok(Encoded { key: spec.key, shape: spec.shape, dtype, bytes })
    }

    /// Read slot by slot from the donor: cut out of a fused tensor, `[d_out, d_in]`.
    fn cut_out(&self, spec: TensorSpec, fused: &str) -> Result<Encoded<'_>, Error> {
        let dtype = self.stored_dtype(fused)?;
        let (key, slot) = (spec.key.clone(), spec.slot);
        let bytes = Box::new(move || cast(&key, &read(self.donor, slot)?.data, dtype));
        Ok(Encoded { key: spec.key, shape: spec.shape, dtype, bytes })
    }

    /// A factor, `[d_out, d_in]`, stored in the layout of its place.
    fn factor(&self, spec: TensorSpec) -> Encoded<'_> {
        let dtype = self.dtype.unwrap_or(Dtype::F32);
        let TensorSpec { key, shape, slot, layout, .. } = spec;
        let (name, expected) = (key.clone(), shape.iter().product::<usize>());
        let bytes = Box::new(move || {
            let unreadable = |source| Error::Factor { slot: slot.to_string(), source };
            let matrix = self.factors.get(slot);
            let matrix = matrix.and_then(|matrix| matrix.ok_or_else(|| "it is not there any more".into()));
            let matrix = matrix.map_err(unreadable)?;
            assert_eq!(matrix.data.len(), expected, "{name}: the factor for {slot} changed its size");
            check_finite(self.donor, &name, &matrix.data)?;
            cast(&name, &in_layout(&matrix.data, [matrix.rows, matrix.cols], layout), dtype)
        });
        Encoded { key, shape, dtype, bytes }
    }
}

/// The configuration of the text model alone, where a donor has others beside it, under the names that transformers gives such.
fn text_model(fields: &Map<String, Value>) -> Map<String, Value> {
    let Some(Value::Object(text)) = fields.get("text_config") else { return fields.clone() };
    const OF_THE_WHOLE: [&str; 5] = ["torch_dtype", "dtype", "bos_token_id", "eos_token_id", "pad_token_id"];
    let mut alone = Map::new();
    let whole = |field: &str| fields.get(field).filter(|value| !value.is_null());
    if let Some(Value::String(name)) = whole("model_type") {
        alone.insert("model_type".into(), format!("{name}_text").into());
    }
    if let Some(Value::String(name)) = whole("architectures").and_then(|names| names.get(0)) {
        let name = name.replace("ForConditionalGeneration", "ForCausalLM");
        alone.insert("architectures".into(), json!([name]));
    }
    for field in OF_THE_WHOLE {
        alone.extend(whole(field).map(|value| (field.to_owned(), value.clone())));
    }
    alone.extend(text.clone());
    alone
}

/// The name of a tensor in a text model that stands alone.
fn text_key(key: &str) -> String {
    let inside = ["language_model.model.", "model.language_model."];
    let rest = inside.iter().find_map(|prefix| key.strip_prefix(prefix));
    rest.map_or_else(|| key.to_owned(), |rest| format!("model.{rest}"))
}

/// A `[d_out, d_in]` matrix as a layout stores it.
fn in_layout(values: &[f32], [d_out, d_in]: [usize; 2], layout: Layout) -> Cow<'_, [f32]> {
    match layout {
        Layout::OutIn => Cow::Borrowed(values),
        Layout::InOut => Cow::Owned(transpose(values, d_out, d_in)),
    }
}
