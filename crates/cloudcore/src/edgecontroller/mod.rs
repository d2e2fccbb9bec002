//! EdgeController: what each node must have, and what nodes may ask for.
//!
//! [`view`] is what is known of the cluster's pods and nodes, [`versions`] of all that nodes may have, [`downstream`] keeps it and pushes changes ([`devices`]: those of devices), `catch_up` compares when a node connects, [`upstream`] answers
//! requests, [`authorize`] decides which, [`references`] finds what a pod refers to, `node` what a node may say of itself, [`told`] tells users what a node could not take.

pub mod authorize;
mod catch_up;
pub mod devices;
pub mod downstream;
mod node;
pub(crate) mod object;
pub mod references;
pub mod told;
pub mod upstream;
pub mod versions;
pub mod view;
