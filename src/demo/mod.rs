//! `pointsman demo`: real servers, the proxy before them and a small workload.

mod binaries;
mod node;
mod ports;
mod process;
pub mod servers;

pub use ports::Port;
pub use process::{Keeper, Signal, signal, signal_tree, wait_for_exit};
