//! Identities drawn at random.

/// A number nobody else has.
pub(crate) fn random_id() -> Result<u64, std::io::Error> {
    let mut bytes = [0u8; 8];
    loop {
        rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
        let id = u64::from_ne_bytes(bytes);
        if id != 0 {
            return Ok(id);
        }
    }
}
