//! What a MySQL client sends after its login: cut into commands and written for a server.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pointsman::mysql::fuzzing;

fuzz_target!(|data: &[u8]| fuzzing::commands(data));
