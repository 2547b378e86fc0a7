//! Is there an adapter that Vulkan lists?
//!
//! Where there is no driver, or no loader of drivers, the list is empty.

use claimcheck_common::domain::{DeviceChoice, Order};
use cubecl::wgpu::WgpuDevice;
use futures::executor::block_on;
use wgpu::{Backends, DeviceType, Instance, InstanceDescriptor};

use super::{Device, DeviceError, Software};

/// The first adapter: discrete cards, then integrated and virtual ones, then software.
pub(super) fn find(software: Software) -> Result<Device, DeviceError> {
    let instance = Instance::new(InstanceDescriptor {
        backends: Backends::VULKAN,
        ..InstanceDescriptor::new_without_display_handle()
    });
    let adapters: Vec<_> = block_on(instance.enumerate_adapters(Backends::VULKAN))
        .iter()
        .map(wgpu::Adapter::get_info)
        .collect();
    let kinds = [
        (DeviceType::DiscreteGpu, WgpuDevice::DiscreteGpu(0)),
        (DeviceType::IntegratedGpu, WgpuDevice::IntegratedGpu(0)),
        (DeviceType::VirtualGpu, WgpuDevice::VirtualGpu(0)),
        (DeviceType::Cpu, WgpuDevice::Cpu),
    ];
    let wanted = kinds
        .into_iter()
        .filter(|(kind, _)| *kind != DeviceType::Cpu || software == Software::Taken);
    for (kind, device) in wanted {
        if let Some(adapter) = adapters.iter().find(|adapter| adapter.device_type == kind) {
            return Ok(Device::Vulkan(device, adapter.name.clone(), Order::Fixed));
        }
    }
    Err(DeviceError::Missing {
        device: DeviceChoice::Vulkan,
        complaint: "no Vulkan driver lists an adapter on this machine".to_owned(),
    })
}
