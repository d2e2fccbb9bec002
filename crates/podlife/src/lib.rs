//! Pod and container life cycle as pure decisions.
//!
//! No clock, no files, no sockets: the shell (`edged`) hands in the pod as the API has it, what the
//! runtime says ([`observed`]) and the time, and gets back what to do ([`admission`], [`actions`], [`stage`], [`grace`],
//! [`backoff`], [`hooks`]) and what to report ([`status`], [`patch`]). The rules are those of the kubelet 1.32, whose
//! decision tables are the tables of this crate's tests.

pub mod actions;
pub mod admission;
pub mod apparmor;
pub mod backoff;
pub mod conditions;
pub mod containers;
pub mod devices;
pub mod eviction;
pub mod grace;
pub mod hooks;
pub mod image_gc;
pub mod last_words;
pub mod node_selector;
pub mod observed;
pub mod patch;
pub mod phase;
pub mod probe;
pub mod qos;
pub mod quantity;
pub mod recover;
pub mod requests;
pub mod resize;
pub mod shutdown;
pub mod spec;
pub mod stage;
pub mod static_pod;
pub mod status;
pub mod sysctl;
pub mod system_oom;
pub mod unsupported;
