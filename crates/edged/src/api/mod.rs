//! The node's HTTP API (the kubelet's), on port 10350 of this machine.
//!
//! One port, and [`NodeApi`] for other modules of the program. TLS is spoken by whoever begins with it; plain HTTP is served to peers on loopback only. Everything but
//! `/healthz…` wants a token or a client certificate, see [`auth`] for who may. `route` knows paths and methods, each other
//! file one kind of answer; what is answered with comes from [`crate::access`]. Bounds: connections, time and size of a
//! request's head (`link::http_server`), streams at once (`access`); request bodies are never read.

mod answer;
mod auth;
mod configz;
mod devices;
mod health;
mod logs;
mod metrics;
mod node_api;
mod pods;
mod query;
mod route;
mod server;
mod upgrade;
mod websocket;

pub use devices::{DeviceName, DevicePages, DeviceQuestion, Page};
pub use node_api::{Answerer, NodeApi};
pub use server::{Api, listen};
