//! What the API hands on to the kubelets of the nodes, and what it makes of their figures.
//!
//! `route` says which request of a kubelet a subresource of a pod becomes, with `log` for the options of logs; `pass` sends it and
//! turns refusals into `Status`; `metrics` computes `metrics.k8s.io` from the nodes' statistics (`summary`). Who dials a
//! node is handed in as [`Kubelets`]; an API without it serves none of this.

mod log;
pub(crate) mod metrics;
pub(crate) mod pass;
mod route;
mod summary;

use std::time::Duration;

use futures_util::future::BoxFuture;
use http::{Request, Response};
use link::http_server::Body;

use crate::{Api, ApiError};

/// The way to the kubelets of the nodes.
pub trait Kubelets: Send + Sync + 'static {
    /// Sends a request to the kubelet of a node and gives its answer, whatever its status; the body comes as the node sends it, and who
    /// drops it ends the connection. The head of the answer must come within `patience`, if that is given.
    ///
    /// A request that carries a [`hyper::upgrade::OnUpgrade`] asks for an upgrade: when the node agrees, the answer is its 101,
    /// and once that is sent the bytes of both sides go to the other until one ends.
    ///
    /// # Errors
    /// The node is not known, or cannot be reached, or does not answer in time.
    fn ask<'a>(
        &'a self,
        api: &'a Api,
        node: &'a str,
        request: Request<Body>,
        patience: Option<Duration>,
    ) -> BoxFuture<'a, Result<Response<Body>, ApiError>>;
}

/// What leads to the nodes, with what is remembered of them.
pub(crate) struct Nodes {
    pub kubelets: Box<dyn Kubelets>,
    pub usage: metrics::Usage,
}

impl Nodes {
    pub(crate) fn new(kubelets: impl Kubelets) -> Self {
        Self { kubelets: Box::new(kubelets), usage: metrics::Usage::default() }
    }
}
