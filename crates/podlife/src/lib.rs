//! Pod and container life cycle as pure decisions.
//!
//! No clock, no files, no sockets: the shell (`edged`) hands in the pod as the API has it, what the
//! runtime says ([`observed`]) and the time, and gets back what to do ([`actions`]) and what to report
//! ([`status`], [`patch`]). The rules are those of the kubelet 1.32; where a table of the Kubernetes
//! documentation or source is meant, the module says which.

pub mod observed;
