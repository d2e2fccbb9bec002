//! The node agent: runs the pods that MetaManager hands over on a CRI container runtime.
//!
//! Edged talks to MetaManager only by beehive messages (`meta`). The pod side (`pods`) owns one task per
//! pod and decides with the pure crate `podlife`; the runtime side ([`runtime`] over `cri`) carries the decisions out.

pub mod events;
pub mod meta;
pub mod runtime;
pub mod settings;

pub use settings::Settings;
