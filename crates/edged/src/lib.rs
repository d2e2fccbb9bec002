//! The node agent: runs the pods that MetaManager hands over on a CRI container runtime.
//!
//! Edged talks to MetaManager only by beehive messages (`meta`). The pod side (`pods`) owns one task per
//! pod and decides with the pure crate `podlife`; the runtime side ([`runtime`] over `cri`) carries the decisions out.

pub mod access;
pub mod api;
pub mod cri;
pub mod devices;
pub mod edged;
pub mod events;
pub mod meta;
pub mod node;
pub mod pods;
pub mod runtime;
pub mod settings;
mod shutdown;
pub mod stats;

mod cgroups;
mod container;
mod dns;
mod eviction;
mod http;
mod images;
mod labels;
mod logs;
mod measures;
mod observe;
mod paths;
mod sandbox;
mod static_pods;
pub mod streams;
mod volumes;

pub use edged::Edged;
pub use settings::Settings;
