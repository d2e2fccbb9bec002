//! The broker and the client over loopback, against clients of others.

#![allow(clippy::unwrap_used, clippy::panic)]

mod access;
mod external;
mod limits;
mod local;
mod mosquitto;
mod protocol;
mod restart;
mod support;
mod v5;
