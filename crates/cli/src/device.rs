//! Choosing where to compute: the only place that knows which backends are compiled in.

use burn::tensor::Device;

use crate::error::UserError;

/// A backend, and what it finds on this machine.
#[derive(Debug)]
pub struct Backend {
    /// As `--device` takes it.
    pub name: &'static str,
    /// What to build with, where it was left out.
    pub left_out: Option<UserError>,
    /// Its devices, in their order.
    pub devices: Vec<Device>,
}

/// All backends, the fastest first.
pub fn backends() -> Vec<Backend> {
    let found = [("cuda", cuda_devices()), ("wgpu", wgpu_devices()), ("cpu", cpu_devices())];
    let backend = |(name, devices): (&'static str, Option<Vec<Device>>)| Backend {
        name,
        left_out: devices.is_none().then(|| absent(name, name)),
        devices: devices.unwrap_or_default(),
    };
    found.into_iter().map(backend).collect()
}

/// Opens `auto`, `cpu`, `wgpu[:N]` or `cuda[:N]`.
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
    let devices = match (backend, index) {
        ("auto", None) => Some(
            backends()
                .into_iter()
                .flat_map(|backend| backend.devices)
                .find(|device| distrusted(device).is_none())
                .into_iter()
                .collect(),
        ),
        ("cpu", None) => cpu_devices(),
        ("wgpu", _) => wgpu_devices(),
        ("cuda", _) => cuda_devices(),
        _ => return Err(unknown(name)),
    };
    let devices: Vec<Device> = devices.ok_or_else(|| absent(name, backend))?;
    let count = devices.len();
    let device = devices.into_iter().nth(index.unwrap_or(0)).ok_or_else(|| UserError::Device {
        device: name.into(),
        reason: format!("there are {count} such devices on this machine"),
        hint: "shrink devices lists what is there; check the driver, or use --device cpu".into(),
    })?;
    match distrusted(&device) {
        None => Ok(device),
        Some(reason) => Err(UserError::Device {
            device: name.into(),
            reason: format!("{}: {reason}", description(&device)),
            hint: "use --device cpu, or a shrink that was built with `--features wgpu` and without `vulkan`"
                .into(),
        }),
    }
}

/// Whether a device is the processor.
pub fn is_host(device: &Device) -> bool {
    #[cfg(feature = "cpu")]
    return *device == Device::flex();
    #[cfg(not(feature = "cpu"))]
    {
        let _ = device;
        false
    }
}

/// What a device is, as its driver names it. Opens the device.
pub fn description(device: &Device) -> String {
    #[cfg(any(feature = "wgpu", feature = "cuda"))]
    if let Some(identity) = device.identity() {
        return identity.name;
    }
    format!("{device:?}")
}

/// Why nothing is to be computed on a device, although it is there. Opens the device.
///
/// SPIR-V shaders kill the process on Mesa's lavapipe up to 25.0 and give wrong numbers on SwiftShader, without an error.
pub fn distrusted(device: &Device) -> Option<&'static str> {
    #[cfg(feature = "vulkan")]
    if device.identity().is_some_and(|identity| identity.physical.is_none()) {
        return Some("a driver in software, on which the SPIR-V shaders of this build crash or miscompute");
    }
    let _ = device;
    None
}

fn unknown(name: &str) -> UserError {
    UserError::Flag {
        flag: "--device",
        found: name.into(),
        expected: "auto, cpu, wgpu, wgpu:N, cuda or cuda:N".into(),
    }
}

/// `None` where the backend is not compiled in.
fn cpu_devices() -> Option<Vec<Device>> {
    #[cfg(feature = "cpu")]
    return Some(vec![Device::flex()]);
    #[cfg(not(feature = "cpu"))]
    None
}

fn wgpu_devices() -> Option<Vec<Device>> {
    #[cfg(feature = "wgpu")]
    return Some(Device::enumerate(burn::tensor::DeviceType::Wgpu).into_vec());
    #[cfg(not(feature = "wgpu"))]
    None
}

/// Enumerating asks the driver; opening a device without one would panic.
fn cuda_devices() -> Option<Vec<Device>> {
    #[cfg(feature = "cuda")]
    return Some(Device::enumerate(burn::tensor::DeviceType::Cuda).into_vec());
    #[cfg(not(feature = "cuda"))]
    None
}

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
        for name in ["gpu", "cpu:0", "auto:1", "wgpu:x", "cuda:-1", ""] {
            assert!(matches!(open(name), Err(UserError::Flag { .. })), "{name}");
        }
    }

    #[test]
    fn something_is_always_found() {
        assert!(open("auto").is_ok());
        assert_eq!(
            backends().iter().map(|backend| backend.name).collect::<Vec<_>>(),
            ["cuda", "wgpu", "cpu"]
        );
    }

    #[cfg(not(feature = "cuda"))]
    #[test]
    fn a_backend_left_out_names_its_feature() {
        let error = open("cuda:0").expect_err("cuda is not compiled in");
        assert!(error.hint().is_some_and(|hint| hint.contains("--features cuda")));
    }
}
