//! What travels between cloud and edge: the message envelope, resource paths, operations, and the answers that carry
//! Kubernetes objects or errors. Pure: no clock, no randomness, no IO.
//!
//! Source of every rule: the message model of KubeEdge v1.23. Read `message` first, then `resource`; `tunnel` is another channel, for
//! streams. What only our own ends
//! say to each other is agreed on by [`Features`]: `acks`, `batch`, `inventory`, `on_demand`.

pub mod acks;
mod answer;
pub mod batch;
mod content;
mod features;
pub mod inventory;
mod message;
mod names;
pub mod on_demand;
mod resource;
pub mod tunnel;

pub use answer::{AnswerError, ErrorAnswer, ObjectResp, Status, StatusDetails};
pub use content::{Content, ContentError};
pub use features::{FEATURES, Features, INVENTORY};
pub use message::{Header, Message, ParseError, Route};
pub use names::{group, kind, module, operation, source};
pub use resource::{EdgeResource, PathError, node_of, strip_node, with_node};

/// The longest message that either side accepts, in bytes. Upstream has no limit on WebSocket and 32 MiB on QUIC; the largest
/// object of a Kubernetes API server has about 1.5 MiB.
pub const MAX_MESSAGE_BYTES: usize = 32 << 20;
