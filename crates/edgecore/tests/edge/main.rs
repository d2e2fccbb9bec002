//! edgecore against a stand-in for a Go cloudcore, over loopback.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod chaos;
mod delivery;
mod joining;
mod offline;
mod program;
mod queries;
mod reboot;
mod support;
mod whole;
