//! The runtime half of edged against a runtime in memory and against real containerd.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod containers;
mod node;
mod real;
mod stub;
