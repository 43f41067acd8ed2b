#![no_main]

use libfuzzer_sys::fuzz_target;
use memcache_transport::fuzzing::session;

fuzz_target!(|input: &[u8]| session(input));
