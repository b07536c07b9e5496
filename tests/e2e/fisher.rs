//! The Fisher information, a block at a time, against transformers' one backward pass (`goldens/fisher`).

use burn::tensor::Device;
use calib::{FisherOptions, Labels, Needs, Scratch, Statistics};
use handlers::{Model, Registry};
use safetensors::{Dtype, SafeTensors};

use crate::folder::golden;

const TWINS: [&str; 5] = ["gpt2", "llama", "mixtral", "qwen2", "qwen2-window"];

/// The rows of an integer matrix.
fn ids(file: &SafeTensors<'_>, name: &str) -> Vec<Vec<u32>> {
    let view = file.tensor(name).expect("a golden");
    assert_eq!((view.dtype(), view.shape().len()), (Dtype::I64, 2), "{name}");
    let id = |b: &[u8]| u32::try_from(i64::from_le_bytes(b.try_into().expect("eight bytes"))).expect("an id");
    view.data().chunks_exact(8 * view.shape()[1]).map(|row| row.chunks_exact(8).map(id).collect()).collect()
}

fn floats(file: &SafeTensors<'_>, name: &str) -> Vec<f64> {
    let view = file.tensor(name).unwrap_or_else(|e| panic!("{name}: {e}"));
    assert_eq!(view.dtype(), Dtype::F32, "{name}");
    let number = |b: &[u8]| f64::from(f32::from_le_bytes(b.try_into().expect("four bytes")));
    view.data().chunks_exact(4).map(number).collect()
}

#[test]
fn the_fisher_information_is_that_of_transformers() {
    let bytes = std::fs::read(golden("fisher/golden.safetensors")).expect("the goldens");
    let file = SafeTensors::deserialize(&bytes).expect("a safetensors file");
    let (windows, labels) = (ids(&file, "ids"), ids(&file, "labels").concat());
    for twin in TWINS {
        let model = Model::open(golden(twin).as_ref(), &Registry::builtin()).expect("a twin");
        let options = FisherOptions {
            labels: Labels::Given(labels.clone()),
            draws: 1,
            windows: windows.len(),
            first_position: true,
        };
        let needs = Needs { window: 0, queries: false, fisher: Some(options), sink: 0.0, shared: Vec::new() };
        let (device, scratch) = (Device::flex(), Scratch::new(1 << 30, std::env::temp_dir()));
        let statistics = Statistics::of_text(&model, &windows, &needs, &device, &scratch, &mut ());
        let statistics = statistics.unwrap_or_else(|e| panic!("{twin}: {e}"));
        for layer in 0..statistics.config().n_layers() {
            let found = statistics.fisher(layer).expect("it can be read").expect("it was asked for");
            for (part, found) in ["key", "value"].into_iter().zip(found) {
                let expected = floats(&file, &format!("{twin}.{part}.{layer}"));
                assert_eq!(found.data.len(), expected.len(), "{twin}, layer {layer}, {part}");
                let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>().sqrt();
                let gap = norm(&mut found.data.iter().zip(&expected).map(|(a, b)| a - b));
                let size = norm(&mut expected.iter().copied());
                assert!(gap <= 1e-3 * size, "{twin}, layer {layer}, {part}: {:e} of the norm", gap / size);
            }
        }
    }
}
