//! Logins with real clients (tokio-postgres, psql) and a real server.

mod clients;
mod door;
mod fake_servers;
mod malformed;
mod real_server;
mod servers;
