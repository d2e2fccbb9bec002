//! The configuration files of the programs, as KubeEdge v1.23 has them.
//!
//! A file is read over the complete default document (`default.yaml` of each program): absent keys keep their defaults, maps
//! merge, lists replace, keys are matched without regard to case. Every mistake is told at once with its path; unknown keys are
//! warnings with a suggestion. The programs use typed views of the result.

pub mod cloudcore;
pub mod document;
pub mod edgecore;
pub mod mapper;

pub use document::{ConfigError, Document};
