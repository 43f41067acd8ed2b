#![no_main]

use libfuzzer_sys::fuzz_target;
use memcache_transport::fuzzing::relay;

fuzz_target!(|input: &[u8]| relay(input));
