#![no_main]

use libfuzzer_sys::fuzz_target;
use memcache_transport::fuzzing::request;

fuzz_target!(|input: &[u8]| request(input));
