#![no_main]

use libfuzzer_sys::fuzz_target;
use memcache_transport::fuzzing::descriptor;

fuzz_target!(|input: &[u8]| descriptor(input));
