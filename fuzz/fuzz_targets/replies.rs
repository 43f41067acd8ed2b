#![no_main]

use libfuzzer_sys::fuzz_target;
use memcache_transport::fuzzing::replies;

fuzz_target!(|input: &[u8]| replies(input));
