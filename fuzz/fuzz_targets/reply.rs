#![no_main]

use libfuzzer_sys::fuzz_target;
use memcache_transport::fuzzing::reply;

fuzz_target!(|input: &[u8]| reply(input));
