//! What the tests of several crates share: stand-ins for the programs and machines around ours, and the real ones started
//! for a test.

pub mod containerd;
pub mod deployment;
pub mod door;
pub mod fake_cri;
pub mod feed;
pub mod go_cloud;
pub mod go_edge;
pub mod golden;
pub mod lossy_link;
pub mod processes;
pub mod registry;
pub mod relay;
pub mod site;

/// The CRI messages, client and server, made from edged's contract.
#[allow(missing_docs, clippy::all)]
pub mod cri {
    tonic::include_proto!("runtime.v1");
}
