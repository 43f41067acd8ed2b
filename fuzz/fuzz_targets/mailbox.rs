#![no_main]

use libfuzzer_sys::fuzz_target;
use memcache_mailbox::fuzzing::mailbox;

fuzz_target!(|input: &[u8]| mailbox(input));
