//! Encrypted connections, and secrets that show nowhere: the real binary against real servers.

mod certificates;
mod emissions;
mod fronts;
mod secrets;
mod secured_postgres;
mod tls;
