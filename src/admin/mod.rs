//! The control plane's doors: HTTP and the console, over one handle to the running proxy.

pub mod console;
pub mod control;
pub mod http;
