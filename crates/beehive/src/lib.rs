//! The module framework of both programs: modules with an inbox each, messages between them by name or group, requests
//! with a deadline, supervision and an orderly end.
//!
//! The meaning follows KubeEdge v1.23's beehive; two of its faults are not repeated: messages to one member of a group keep
//! their order, and no message vanishes without its sender knowing. Read `context` first, then `manager`.
//!
//! Shutdown has two steps. When the process is to stop, [`Context::stopping`] resolves and each module ends its work;
//! a module that has not ended after the grace period is dropped.

mod context;
mod manager;

pub mod compose;
pub mod program;
pub mod sys;

pub use context::{Context, INBOX, Inbox, SendError, SendSyncError};
pub use futures_util::future::BoxFuture;
pub use manager::{Module, ModuleError, ModuleManager};
