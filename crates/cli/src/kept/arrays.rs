//! Kept statistics as a safetensors file: one `F64` tensor an array, and what they are in the header's metadata.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, bail};
use calib::linalg::Mat64;
use calib::{Holds, Needs, Scratch, Statistics};
use mla_core::DecoderConfig;
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};

/// The field of the metadata that says what is there.
const HOLDS: &str = "holds";
/// A header above this is none.
const MOST_HEADER_BYTES: u64 = 1 << 26;

/// Writes statistics, an array at a time.
///
/// # Errors
/// When the file cannot be written or an array not be read.
pub fn write(file: &mut dyn Write, statistics: &Statistics) -> anyhow::Result<()> {
    let arrays = statistics.arrays();
    let mut end = 0;
    let info = |array: &calib::KeptArray<'_>| {
        let begin = end;
        end += 8 * array.shape.iter().product::<usize>();
        let info = TensorInfo { dtype: Dtype::F64, shape: array.shape.to_vec(), data_offsets: (begin, end) };
        (array.name.clone(), info)
    };
    let tensors = arrays.iter().map(info).collect();
    let holds = HashMap::from([(HOLDS.to_owned(), serde_json::to_string(&statistics.holds())?)]);
    let header = serde_json::to_vec(&Metadata::new(Some(holds), tensors)?)?;
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(&header)?;
    for array in &arrays {
        let raw: Vec<u8> = array.load()?.iter().flat_map(|number| number.to_le_bytes()).collect();
        file.write_all(&raw)?;
    }
    Ok(())
}

/// Reads statistics; `None` where there are none, or not all that is needed.
///
/// # Errors
/// When the file cannot be read or is damaged.
pub fn read(
    path: &Path,
    config: &DecoderConfig,
    needs: &Needs,
    scratch: &Scratch,
) -> anyhow::Result<Option<Statistics>> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let mut size = [0; 8];
    file.read_exact(&mut size)?;
    let size = u64::from_le_bytes(size);
    if size > MOST_HEADER_BYTES.min(file.metadata()?.len()) {
        bail!("its header is damaged");
    }
    let mut header = vec![0; size as usize];
    file.read_exact(&mut header)?;
    let metadata: Metadata = serde_json::from_slice(&header)?;
    let holds = metadata.metadata().as_ref().and_then(|fields| fields.get(HOLDS));
    let holds: Holds = serde_json::from_str(holds.context("it does not say what it holds")?)?;
    if !holds.covers(needs) {
        return Ok(None);
    }
    let mut array = |name: &str| {
        let Some(info) = metadata.info(name) else { return Ok(None) };
        let ([rows, cols], Dtype::F64) = (info.shape[..].try_into().unwrap_or([0, 0]), info.dtype) else {
            return Ok(None);
        };
        let (begin, end) = info.data_offsets;
        let mut raw = vec![0; end - begin];
        let read = file.read_exact_at(&mut raw, 8 + size + begin as u64);
        read.map_err(|source| calib::Error::Scratch { action: "read", folder: path.into(), source })?;
        let data = raw.as_chunks::<8>().0.iter().map(|number| f64::from_le_bytes(*number)).collect();
        Ok(Some(Mat64 { rows, cols, data }))
    };
    let statistics = Statistics::from_arrays(config, &holds, &mut array, scratch)?;
    Ok(Some(statistics.context("an array is missing")?))
}
