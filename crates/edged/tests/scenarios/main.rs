//! Black-box scenarios of a node agent: edged on a private containerd, with a MetaManager in memory, seen from outside
//! through CRI, files and the messages that leave. Each test is named by its number; `docs/node-agent.md` has the list.
//!
//! Needs root, containerd, runc, CNI plugins and a static busybox, as `cargo xtask test` installs them. What takes over a
//! minute is ignored as slow and run by `cargo xtask e2e --slow`.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs, reason = "tests may panic and speak for themselves")]

mod admission;
mod cgroups;
#[path = "../pods/cloud.rs"]
#[allow(dead_code, reason = "shared with the tests on the runtime in memory")]
mod cloud;
mod container;
mod devices;
mod eviction;
mod hooks;
mod image_gc;
mod images;
mod init;
mod kubectl;
mod logs;
mod node;
#[path = "../pods/node_api.rs"]
#[allow(dead_code, reason = "shared with the tests on the runtime in memory")]
mod node_api;
mod phases;
mod probes;
mod recovery;
mod resize;
mod restart;
mod sandbox;
mod shutdown;
mod site;
mod static_pods;
mod stats;
mod status;
mod streams;
mod termination;
mod told;
mod unhappy;
mod volumes;

pub use site::{Site, pod, pod_with};
