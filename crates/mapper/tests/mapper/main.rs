//! Mappers against a stand-in for edgecore: registration, reports, turns, what shall be, Modbus, pushes.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod desired;
mod modbus;
mod push;
mod recorded;
mod registration;
mod reports;
mod script;
mod stub;
mod support;
mod turns;
