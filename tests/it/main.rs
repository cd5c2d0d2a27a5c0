//! Behaviour of the real binary before real servers, one file per subject.

mod support;

mod bad_input;
mod cancel;
mod catalog;
mod command_route;
mod consistency;
mod copy;
mod crowd;
mod drivers;
mod failover;
mod failover_basic;
mod fencing;
mod freshness;
mod login;
mod metrics;
mod patroni;
mod pipelining;
mod prepared;
mod reload_drain;
mod routing;
mod servers;
mod session_state;
mod tidy;
