//! What a peer sends before its login.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pointsman::postgres::fuzzing;

fuzz_target!(|data: &[u8]| fuzzing::startup(data));
