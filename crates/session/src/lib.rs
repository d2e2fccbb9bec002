//! Reliable delivery between cloud and edge as two state machines. No clock and no sockets: the caller says what time it is and sends
//! what it is told to.
//!
//! [`cloud::NodeQueue`] is the cloud's half for one node: what waits, what is in flight, what was acknowledged. [`edge::Outbox`] is the
//! edge's: what is to be sent and may not be lost while there is no link. `tests/convergence.rs` plays both against each other over a link
//! that breaks, with ends that crash.

pub mod cloud;
pub mod edge;
