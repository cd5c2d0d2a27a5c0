//! Packets of MySQL: of a client that is not in yet, of a server's greeting and of its answers.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pointsman::mysql::fuzzing;

fuzz_target!(|data: &[u8]| {
    fuzzing::login(data);
    fuzzing::server_packets(data);
});
