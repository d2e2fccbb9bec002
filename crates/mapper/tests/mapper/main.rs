//! Mappers against a stand-in for edgecore: registration, reports, what shall be, Modbus, pushes.

mod desired;
mod modbus;
mod push;
mod recorded;
mod registration;
mod reports;
mod script;
mod stub;
mod support;
