//! Pointsman: one endpoint for a replicated PostgreSQL, MySQL or MariaDB database.
//!
//! `docs/architecture.md` has the bird's view; each module says what lives in it.

pub mod admin;
pub mod arrivals;
pub mod cli;
pub mod cluster;
pub mod config;
pub mod demo;
pub mod discovery;
pub mod doctor;
pub mod flights;
pub mod floors;
pub mod greetings;
pub mod inbox;
pub mod line;
pub mod listener;
pub mod logging;
pub mod metrics;
pub mod misspelt;
pub mod monitor;
pub mod mysql;
pub mod observe;
pub mod operator;
pub mod passage;
pub mod pool;
pub mod postgres;
pub mod protocol;
pub mod recent;
pub mod refusal;
pub mod route;
pub mod runtime;
pub mod sending;
pub mod serve;
pub mod session;
pub mod shutdown;
pub mod sockets;
pub mod split;
pub mod sql;
pub mod standing;
pub mod stream;
pub mod takeover;
pub mod tls;
pub mod topology;
