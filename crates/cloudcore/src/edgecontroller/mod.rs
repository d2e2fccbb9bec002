//! EdgeController: what each node must have, and what nodes may ask for.
//!
//! [`view`] is what is known of the cluster's pods and nodes, [`downstream`] keeps it and pushes changes, [`upstream`] answers
//! requests, [`authorize`] decides which, [`references`] finds what a pod refers to.

pub mod authorize;
pub mod downstream;
pub mod references;
pub mod upstream;
pub mod view;
