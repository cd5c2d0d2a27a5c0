//! Pointsman: one endpoint for a replicated PostgreSQL, MySQL or MariaDB database.
//!
//! `docs/architecture.md` has the bird's view; each module says what lives in it.

pub mod cli;
pub mod config;
pub mod logging;
pub mod refusal;
pub mod route;
pub mod shutdown;
pub mod sql;
pub mod topology;
