//! The control plane's doors.

pub mod http;
