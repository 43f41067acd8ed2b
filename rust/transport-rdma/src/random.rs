//! Numbers that cannot be guessed.

use std::io;

use rustix::rand::{GetRandomFlags, getrandom};

/// Thirty-two random bits.
pub(crate) fn u32() -> io::Result<u32> {
    let mut bytes = [0; 4];
    match getrandom(&mut bytes[..], GetRandomFlags::empty()) {
        Ok(4) => Ok(u32::from_le_bytes(bytes)),
        Ok(_) => Err(io::Error::other("getrandom gave too little")),
        Err(error) => Err(error.into()),
    }
}
