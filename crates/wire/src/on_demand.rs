//! The stream tunnel on demand (feature `tunnel-1`): most nodes are never asked for a log, and a connection that nobody uses costs both
//! ends memory and the link bytes.
//!
//! The cloud sends [`OPEN`] of [`RESOURCE`] when somebody wants something of the node and it has no tunnel, and closes the tunnel when
//! nobody has used it for a while. Without the feature the node keeps a tunnel open all the time, as upstream's do.

/// The resource.
pub const RESOURCE: &str = "tunnel";
/// The operation: open a tunnel. One that the node has is dead, for the cloud does not know it, unless the content (a string) is its
/// name: then it was cut, and it is to go on.
pub const OPEN: &str = "open";
/// The header of the message channel's upgrade request with the node's own IP address, by which it may be asked for.
pub const ADDRESS: &str = "x-ferroedge-address";
/// The header of that request and of a tunnel's: 32 hexadecimal digits that each start of edgecore chooses. A tunnel that was cut is not
/// resumed by another process.
pub const PROCESS: &str = "x-ferroedge-process";
