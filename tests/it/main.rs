//! Behaviour of the real binary before real servers, one file per subject.

mod support;

mod bad_input;
mod both;
mod cancel;
mod catalog;
mod command_route;
mod copy;
mod crowd;
mod drivers;
mod failover;
mod failover_basic;
mod fencing;
mod freshness;
mod login;
mod metrics;
mod mysql_drivers;
mod mysql_failover;
mod mysql_session;
mod pipelining;
mod prepared;
mod reload_drain;
mod routing;
mod servers;
mod session_state;
mod tidy;
