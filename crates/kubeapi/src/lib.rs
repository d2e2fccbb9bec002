//! A Kubernetes-shaped REST API over a store of JSON objects: discovery, lists, watches, patches, tables.
//!
//! One set of handlers serves every kind; what differs between kinds is data (`catalog`, `data/`) or a small hook
//! (`defaults`, `validate`, `api::subresource`); objects of custom
//! resources get from version to version in `api::convert`, and what the nodes answer is handed on by `node`. Flow of a request: `http` → `api` → `storage`. Inside the process the same
//! [`Api`] handle is used without HTTP. Read `storage` and `api` first.

pub mod api;
pub mod catalog;
pub mod defaults;
pub mod discovery;
pub mod error;
pub mod http;
pub mod meta;
mod node;
pub mod openapi;
pub mod patch;
pub mod protobuf;
pub mod quantity;
pub mod schema;
pub mod selector;
pub mod storage;
pub mod table;
pub mod types;
pub mod validate;
mod webhook;

pub use api::{Api, ListOptions, ResourceRef, User, WriteOptions};
pub use error::ApiError;
pub use node::Kubelets;
pub use patch::PatchType;
