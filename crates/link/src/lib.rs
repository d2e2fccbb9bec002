//! The link between cloud and edge: certificates and tokens, TLS on one crypto provider, WebSocket with limits, a small
//! HTTPS server and client, reconnect waits, and files that only their owner reads.
//!
//! Read `ca` and `token` for who may join, `tls` for who may talk, `ws` for what is said. Rules are those of KubeEdge v1.23.

pub mod backoff;
pub mod ca;
pub mod files;
pub mod frames;
pub mod http_client;
pub mod http_server;
pub mod identity;
pub mod key;
pub mod newcomers;
pub mod rate;
mod reach;
pub mod remote_command;
pub mod resume;
pub mod splice;
pub mod tls;
pub mod tls_failure;
pub mod token;
pub mod tunnel;
pub mod ws;

pub use rustls;
