//! Pointsman: one endpoint for a replicated PostgreSQL, MySQL or MariaDB database.
//!
//! `docs/architecture.md` has the bird's view; each module says what lives in it.

pub mod config;
pub mod refusal;
pub mod route;
pub mod sql;
pub mod topology;
