//! The device management interface (DMI) of KubeEdge v1.23: how edgecore and mappers, programs that drive devices of one protocol,
//! speak with each other.
//!
//! [`v1beta1`] has messages, clients and servers of both services (gRPC on unix sockets), [`convert`] makes messages of the cluster's
//! Device and DeviceModel objects, [`value`] carries free configuration, [`socket`] connects and listens.

pub mod convert;
pub mod socket;
pub mod value;

/// What both services say, by `proto/dmi.proto`.
#[allow(missing_docs, reason = "generated; proto/dmi.proto says what they mean")]
#[allow(clippy::doc_markdown, clippy::large_enum_variant, reason = "generated")]
pub mod v1beta1 {
    tonic::include_proto!("v1beta1");
}

/// The description of both services, for gRPC reflection (an encoded `FileDescriptorSet`).
pub const DESCRIPTOR: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/dmi.bin"));
