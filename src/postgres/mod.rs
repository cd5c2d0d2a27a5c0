//! PostgreSQL's frontend/backend protocol.

pub mod login;
pub mod message;
