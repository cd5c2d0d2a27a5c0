//! Behaviour of the real binary before real servers, one file per subject.

mod support;

mod activation;
mod bad_input;
mod both;
mod cancel;
mod catalog;
mod command_route;
mod consistency;
mod console;
mod copy;
mod crowd;
mod dashboard;
mod doctor;
mod drivers;
mod failover;
mod failover_basic;
mod fencing;
mod freshness;
mod http;
mod limits;
mod login;
mod metrics;
mod mysql_drivers;
mod mysql_failover;
mod mysql_session;
mod patroni;
mod pipelining;
mod prepared;
mod prometheus;
mod reload_drain;
mod reload_load;
mod routing;
mod servers;
mod session_state;
mod tidy;
