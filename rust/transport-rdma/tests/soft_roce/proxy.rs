//! A man in the middle of the handshake, who changes the answer or keeps the connection open when its owner is dead.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;

use memcache_memory::checksum_bytes;

const HELLO_BYTES: usize = 64;
const WELCOME_BYTES: usize = 72;
/// Where the answer holds the key of the region.
const RKEY: std::ops::Range<usize> = 40..44;

/// What happens to the key of the n-th connection.
pub(crate) type Spoil = fn(connection: usize) -> bool;

/// Starts a proxy in front of `address` and returns its own. All connections stay open as long as this process.
pub(crate) fn start(address: &str, spoil: Spoil) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (own, address) = (listener.local_addr().unwrap().to_string(), address.to_owned());
    thread::spawn(move || {
        let mut kept = Vec::new();
        for (number, client) in listener.incoming().enumerate() {
            let mut client = client.unwrap();
            let Ok(mut server) = TcpStream::connect(&address) else { continue };
            let mut hello = [0; HELLO_BYTES];
            let mut welcome = [0; WELCOME_BYTES];
            if client.read_exact(&mut hello).is_err() {
                continue;
            }
            server.write_all(&hello).unwrap();
            if server.read_exact(&mut welcome).is_err() {
                continue;
            }
            if spoil(number) {
                welcome[RKEY.start] ^= 0xff;
                let sum = checksum_bytes(&welcome[..WELCOME_BYTES - 4]);
                welcome[WELCOME_BYTES - 4..].copy_from_slice(&sum.to_le_bytes());
            }
            client.write_all(&welcome).unwrap();
            kept.push((client, server));
        }
    });
    own
}
