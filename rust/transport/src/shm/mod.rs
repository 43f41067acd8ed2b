//! `host_shm`: the owner hands its memfd to peers of the same host.
//!
//! A peer connects to an abstract Unix socket (one packet each way), shows the token of the descriptor and gets
//! the memfd. The connection then stays open and silent: its end tells the peer that the owner is gone.

pub(crate) mod client;
pub(crate) mod companion;
pub(crate) mod server;

/// Length of what a peer says, in bytes: magic, version, two unused, token.
const HELLO_BYTES: usize = 24;
/// Length of what the owner answers, in bytes: magic, version, status, one unused, region length.
const WELCOME_BYTES: usize = 16;
const MAGIC: [u8; 4] = *b"MCSH";
const VERSION: u16 = 1;

const WELCOME: u8 = 0;
const UNKNOWN_TOKEN: u8 = 1;
const FOREIGN_USER: u8 = 2;
const MALFORMED: u8 = 3;
const FULL: u8 = 4;

fn hello(token: u128) -> [u8; HELLO_BYTES] {
    let mut bytes = [0; HELLO_BYTES];
    bytes[0..4].copy_from_slice(&MAGIC);
    bytes[4..6].copy_from_slice(&VERSION.to_le_bytes());
    bytes[8..24].copy_from_slice(&token.to_le_bytes());
    bytes
}

fn welcome(status: u8, region_bytes: u64) -> [u8; WELCOME_BYTES] {
    let mut bytes = [0; WELCOME_BYTES];
    bytes[0..4].copy_from_slice(&MAGIC);
    bytes[4..6].copy_from_slice(&VERSION.to_le_bytes());
    bytes[6] = status;
    bytes[8..16].copy_from_slice(&region_bytes.to_le_bytes());
    bytes
}

/// Status and region length of a [`welcome`]; `None` for anything else.
fn read_welcome(bytes: &[u8]) -> Option<(u8, u64)> {
    let bytes: &[u8; WELCOME_BYTES] = bytes.try_into().ok()?;
    let (status, region) = (bytes[6], bytes.last_chunk::<8>()?);
    let region_bytes = u64::from_le_bytes(*region);
    (*bytes == welcome(status, region_bytes)).then_some((status, region_bytes))
}
