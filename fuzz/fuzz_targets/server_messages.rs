//! What a server sends, as far as it is looked at without a session.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pointsman::postgres::fuzzing;

fuzz_target!(|data: &[u8]| fuzzing::server_messages(data));
