//! The tiny models of `goldens/`, and what transformers computes with them.

use std::path::PathBuf;

use burn::tensor::{Device, Tensor};
use handlers::{Model, Registry};
use mla_core::{Decoder, DecoderConfig, Padding, WeightSource};
use safetensors::{Dtype, SafeTensors};

/// Every folder of `goldens/` that holds a twin and what transformers computes with it.
pub fn twins() -> Vec<&'static str> {
    let root = folder(".");
    let entries = std::fs::read_dir(&root).unwrap_or_else(|e| panic!("{}: {e}", root.display()));
    let is_twin = |name: &String| {
        ["config.json", "golden.safetensors"].iter().all(|file| folder(name).join(file).exists())
    };
    let names = entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned());
    let mut names: Vec<String> = names.filter(is_twin).collect();
    names.sort();
    assert!(names.len() >= 28, "goldens/ holds {names:?} only");
    names.into_iter().map(|name| &*name.leak()).collect()
}

/// The twins whose k and v carry biases that are added after rebuilding.
pub fn biased() -> Vec<&'static str> {
    let rebuilt = |config: &DecoderConfig| config.layers.iter().all(|layer| layer.qk_norm.is_none());
    let found: Vec<_> = twins()
        .into_iter()
        .filter(|name| {
            let model = open(name);
            model.config().biases.qkv && rebuilt(model.config())
        })
        .collect();
    assert!(found.len() >= 5, "{found:?}");
    found
}

/// The twins whose frequencies follow the length of a sequence. transformers' cached keys keep the angles of the length at
/// which they were cached, so their goldens have neither cached decoding nor padding.
pub const FOLLOWING: [&str; 2] = ["llama-dynamic", "phi3-longrope"];

pub fn folder(name: &str) -> PathBuf {
    PathBuf::from(std::env::var("CARGO_MANIFEST_DIR").expect("cargo sets it"))
        .join("../../goldens")
        .join(name)
}

pub fn open(name: &str) -> Model {
    Model::open(&folder(name), &Registry::builtin()).unwrap_or_else(|e| panic!("{name}: {e}"))
}

pub fn load<S: WeightSource>(source: &S) -> Decoder {
    Decoder::load(source, &Device::default()).expect("the weights load")
}

/// The tensors of a twin's `golden.safetensors`.
pub struct Golden {
    bytes: Vec<u8>,
}

impl Golden {
    pub fn of(name: &str) -> Self {
        let path = folder(name).join("golden.safetensors");
        Self { bytes: std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display())) }
    }

    pub fn has(&self, tensor: &str) -> bool {
        self.file().names().contains(&tensor)
    }

    /// A float tensor, row-major.
    pub fn floats(&self, tensor: &str) -> Vec<f32> {
        let (dtype, _, data) = self.tensor(tensor);
        assert_eq!(dtype, Dtype::F32, "{tensor}");
        data.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().expect("four bytes"))).collect()
    }

    /// The rows of an integer matrix, as token ids.
    pub fn ids(&self, tensor: &str) -> Vec<Vec<u32>> {
        let (dtype, shape, data) = self.tensor(tensor);
        assert_eq!((dtype, shape.len()), (Dtype::I64, 2), "{tensor}");
        let id =
            |b: &[u8]| u32::try_from(i64::from_le_bytes(b.try_into().expect("eight bytes"))).expect("an id");
        data.chunks_exact(8 * shape[1]).map(|row| row.chunks_exact(8).map(id).collect()).collect()
    }

    fn tensor(&self, name: &str) -> (Dtype, Vec<usize>, Vec<u8>) {
        let file = self.file();
        let view = file.tensor(name).unwrap_or_else(|e| panic!("{name}: {e}"));
        (view.dtype(), view.shape().to_vec(), view.data().to_vec())
    }

    fn file(&self) -> SafeTensors<'_> {
        SafeTensors::deserialize(&self.bytes).expect("a golden file")
    }
}

/// A device tensor on the host, row-major.
pub fn host<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().iter::<f32>().collect()
}

/// The largest absolute difference; infinite where one of the two is not a number.
pub fn gap(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len(), "as many numbers");
    assert!(!a.is_empty(), "something to compare");
    let differences = a.iter().zip(b).map(|(a, b)| (a - b).abs());
    differences.fold(0.0, |worst, d| if d.is_nan() { f32::INFINITY } else { worst.max(d) })
}

/// Asserts that two sets of numbers agree within `bound`; `what` says which.
pub fn assert_close(a: &[f32], b: &[f32], bound: f32, what: &str) {
    let gap = gap(a, b);
    assert!(gap <= bound, "{what}: {gap:e} apart, {bound:e} allowed");
}

/// Logits of every position without a cache, row-major `[t, vocab_size]`.
pub fn logits(decoder: &Decoder, ids: &[u32]) -> Vec<f32> {
    host(decoder.forward(&[ids.to_vec()], &Padding::none(1)))
}

/// Logits of every column through the cache, fed in passes of the given widths: `[batch, t, vocab_size]`, row-major
/// a sequence.
pub fn cached_logits(
    decoder: &Decoder,
    ids: &[Vec<u32>],
    padding: Padding,
    passes: &[usize],
) -> Vec<Vec<f32>> {
    let columns = ids[0].len();
    assert_eq!(passes.iter().sum::<usize>(), columns, "the passes cover the batch");
    let mut cache = decoder.cache(padding, columns);
    let mut rows = vec![Vec::new(); ids.len()];
    let mut start = 0;
    for &width in passes {
        let pass: Vec<Vec<u32>> = ids.iter().map(|row| row[start..start + width].to_vec()).collect();
        let hidden = decoder.hidden_cached(&pass, &mut cache).expect("it fits");
        let out = host(decoder.logits(hidden));
        for (row, part) in rows.iter_mut().zip(out.chunks_exact(out.len() / ids.len())) {
            row.extend_from_slice(part);
        }
        start += width;
    }
    assert_eq!(cache.tokens(), columns);
    rows
}

/// A prefill, then one column at a time.
pub fn token_by_token(columns: usize, prefill: usize) -> Vec<usize> {
    [vec![prefill], vec![1; columns - prefill]].concat()
}

/// The most likely token; the lowest id among equals.
pub fn argmax(logits: &[f32]) -> u32 {
    (1..logits.len()).fold(0, |best, i| if logits[i] > logits[best] { i } else { best }) as u32
}

/// Left-pads sequences to the longest.
pub fn left_padded(sequences: &[Vec<u32>], filler: u32) -> (Vec<Vec<u32>>, Padding) {
    let longest = sequences.iter().map(Vec::len).max().unwrap_or(0);
    let left: Vec<usize> = sequences.iter().map(|s| longest - s.len()).collect();
    let batch =
        sequences.iter().zip(&left).map(|(s, &left)| [vec![filler; left], s.clone()].concat()).collect();
    (batch, Padding::left(left))
}
