//! Streams into containers. The runtime serves them over HTTP upgrades (SPDY/3.1); CRI only tells the address.
//!
//! `dial` connects to that address, `remote` is a command that runs in a container (or the
//! container's own process) with its input, output, terminal size and exit status, over the frames of `spdy`.

pub mod dial;
pub mod remote;
pub mod spdy;
