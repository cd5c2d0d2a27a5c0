//! Compressed frames of a MySQL client.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pointsman::mysql::fuzzing;

fuzz_target!(|data: &[u8]| fuzzing::compressed(data));
