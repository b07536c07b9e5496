//! Choosing where to compute: the only place that knows which backends are compiled in.

use burn::tensor::Device;

use crate::error::UserError;

/// Opens `cpu`, `wgpu[:N]` or `cuda[:N]`.
///
/// # Errors
/// When the name is unknown, the backend is not compiled in, or there is no such device.
pub fn open(name: &str) -> Result<Device, UserError> {
    let (backend, index) = match name.split_once(':') {
        None => (name, None),
        Some((backend, index)) => {
            let index = index.parse::<usize>().map_err(|_| unknown(name))?;
            (backend, Some(index))
        }
    };
    match (backend, index) {
        ("cpu", None) => cpu(),
        ("wgpu", index) => wgpu(name, index.unwrap_or(0)),
        ("cuda", index) => cuda(name, index.unwrap_or(0)),
        _ => Err(unknown(name)),
    }
}

fn unknown(name: &str) -> UserError {
    UserError::Flag {
        flag: "--device",
        found: name.into(),
        expected: "cpu, wgpu, wgpu:N, cuda or cuda:N".into(),
    }
}

#[cfg(feature = "cpu")]
fn cpu() -> Result<Device, UserError> {
    Ok(Device::flex())
}

#[cfg(not(feature = "cpu"))]
fn cpu() -> Result<Device, UserError> {
    Err(absent("cpu", "cpu"))
}

#[cfg(feature = "wgpu")]
fn wgpu(name: &str, index: usize) -> Result<Device, UserError> {
    nth(name, index, Device::enumerate(burn::tensor::DeviceType::Wgpu).into_vec())
}

#[cfg(not(feature = "wgpu"))]
fn wgpu(name: &str, _index: usize) -> Result<Device, UserError> {
    Err(absent(name, "wgpu"))
}

#[cfg(feature = "cuda")]
fn cuda(name: &str, index: usize) -> Result<Device, UserError> {
    // Enumerating asks the driver; opening a device without one would panic.
    nth(name, index, Device::enumerate(burn::tensor::DeviceType::Cuda).into_vec())
}

#[cfg(not(feature = "cuda"))]
fn cuda(name: &str, _index: usize) -> Result<Device, UserError> {
    Err(absent(name, "cuda"))
}

#[cfg(any(feature = "wgpu", feature = "cuda"))]
fn nth(name: &str, index: usize, mut devices: Vec<Device>) -> Result<Device, UserError> {
    if index < devices.len() {
        return Ok(devices.swap_remove(index));
    }
    Err(UserError::Device {
        device: name.into(),
        reason: format!("there are {} such devices on this machine", devices.len()),
        hint: "check the driver, or use --device cpu".into(),
    })
}

#[cfg(not(all(feature = "cpu", feature = "wgpu", feature = "cuda")))]
fn absent(name: &str, feature: &str) -> UserError {
    UserError::Device {
        device: name.into(),
        reason: format!("this shrink was built without the feature `{feature}`"),
        hint: format!("build it with `cargo build --release --features {feature}` (docs/backends.md)"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_is_no_device_is_refused() {
        for name in ["gpu", "cpu:0", "wgpu:x", "cuda:-1", ""] {
            assert!(matches!(open(name), Err(UserError::Flag { .. })), "{name}");
        }
    }

    #[cfg(not(feature = "cuda"))]
    #[test]
    fn a_backend_left_out_names_its_feature() {
        let error = open("cuda:0").expect_err("cuda is not compiled in");
        assert!(error.hint().is_some_and(|hint| hint.contains("--features cuda")));
    }
}
