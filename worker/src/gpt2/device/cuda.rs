//! Is there a card of NVIDIA's, and what its kernels are compiled with?
//!
//! The runtime ends its own thread when something is missing, and waits for ever or panics far from here: hence all is
//! looked for before.

#![allow(unsafe_code)]

use claimcheck_common::domain::{DeviceChoice, Order};
use cubecl::cuda::{CudaDevice, install};
use cudarc::driver::result;

use super::{Device, DeviceError};

/// The card of this number.
pub(super) fn find(number: u16) -> Result<Device, DeviceError> {
    let missing = |complaint: String| DeviceError::Missing {
        device: DeviceChoice::Cuda(number),
        complaint,
    };
    // SAFETY: both only load a library of the driver's or of the compiler's, which runs its own initializers.
    let (driver, compiler) = unsafe {
        (
            cudarc::driver::sys::is_culib_present(),
            cudarc::nvrtc::sys::is_culib_present(),
        )
    };
    if !driver {
        return Err(missing("there is no CUDA driver (libcuda) on this machine".to_owned()));
    }
    if !compiler {
        return Err(missing("libnvrtc, which compiles kernels, is not installed".to_owned()));
    }
    let headers = install::cuda_path().map(|path| path.join("include/cuda_runtime.h"));
    if !headers.is_some_and(|path| path.exists()) {
        return Err(missing(
            "CUDA's headers are not installed: set CUDA_PATH to the folder whose `include` has cuda_runtime.h"
                .to_owned(),
        ));
    }
    let count = result::init().and_then(|()| result::device::get_count());
    let count = count.map_err(|error| missing(format!("the CUDA driver does not start: {error}")))?;
    if i32::from(number) >= count {
        return Err(missing(format!("this machine has {count} such cards, counted from 0")));
    }
    let name = result::device::get(i32::from(number)).and_then(result::device::get_name);
    let name = name.map_err(|error| missing(format!("the card does not answer: {error}")))?;
    Ok(Device::Cuda(CudaDevice::new(usize::from(number)), name, Order::Fixed))
}
