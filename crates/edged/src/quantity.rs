//! Kubernetes quantities.

pub use podlife::quantity::*;
