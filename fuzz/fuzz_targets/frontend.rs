//! What a client sends after its login: cut into requests and written for a server.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pointsman::postgres::fuzzing;

fuzz_target!(|data: &[u8]| fuzzing::requests(data));
