//! What every device checks before a batch is accepted.

use crate::address::{Copy, Direction};
use crate::device::{DeviceCapabilities, DeviceId};
use crate::error::DeviceError;

pub(crate) fn invalid(device: DeviceId, direction: Direction, index: usize, why: String) -> DeviceError {
    DeviceError::InvalidCopy { device: device.to_string(), direction: direction.name(), index, why }
}

/// Number, length and alignment of copies.
pub(crate) fn check_batch(
    device: DeviceId,
    limits: &DeviceCapabilities,
    direction: Direction,
    copies: &[Copy],
) -> Result<(), DeviceError> {
    if copies.len() > limits.batch_copies_max {
        let why = format!("a batch of {} copies; the limit is {}", copies.len(), limits.batch_copies_max);
        return Err(invalid(device, direction, limits.batch_copies_max, why));
    }
    for (index, copy) in copies.iter().enumerate() {
        if copy.bytes > limits.copy_bytes_max {
            let why = format!("{} bytes; the limit is {}", copy.bytes, limits.copy_bytes_max);
            return Err(invalid(device, direction, index, why));
        }
        for (what, number) in [("source", copy.source), ("target", copy.target), ("length", copy.bytes)] {
            if !number.is_multiple_of(limits.align) {
                let why = format!("{what} {number:#x} is not a multiple of {} bytes", limits.align);
                return Err(invalid(device, direction, index, why));
            }
            if copy.source.checked_add(copy.bytes).is_none() || copy.target.checked_add(copy.bytes).is_none() {
                let why = format!("{} bytes from {number:#x} go past the end of the address space", copy.bytes);
                return Err(invalid(device, direction, index, why));
            }
        }
    }
    Ok(())
}
