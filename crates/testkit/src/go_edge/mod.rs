//! A stand-in for a Go edgecore of KubeEdge v1.23.1, for tests of cloudcore: what it writes is built from the recordings and
//! upstream's rules, not from our own protocol crates, so that a fault in those shows.
//!
//! [`registration`] gets a certificate, [`GoEdge`] is a connected edge, [`replay`] drives it with recorded frames. Whatever
//! upstream's edge would choke on is collected in [`Seen::faults`] by [`judge`]: end each test with asserting that there is none.

pub mod channel;
mod edge;
pub mod http;
pub mod judge;
pub mod registration;
pub mod replay;

pub use edge::{Behaviour, GoEdge, Seen, message, request};
pub use registration::{Credentials, register, renew};
pub use replay::Replay;
