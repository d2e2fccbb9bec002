//! Kubernetes' remote command protocol over WebSockets: each binary message begins with the number of its channel.

/// The version that can tell the end of a channel ([`CLOSE`]).
pub const V5: &str = "v5.channel.k8s.io";
/// Standard input.
pub const STDIN: u8 = 0;
/// Standard output.
pub const STDOUT: u8 = 1;
/// Standard error; with a terminal there is none.
pub const STDERR: u8 = 2;
/// How the command ended: a `Status` of Kubernetes in JSON.
pub const STATUS: u8 = 3;
/// The terminal's size: `{"Width":80,"Height":24}`.
pub const RESIZE: u8 = 4;
/// The number of a channel follows, which is closed.
pub const CLOSE: u8 = 255;
