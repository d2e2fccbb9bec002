//! How the HTTP client finds addresses: by [`lookup`](crate::lookup), as everybody here.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper_util::client::legacy::connect::dns::Name;
use tokio::time::timeout;

use crate::lookup;

/// Each within this time.
#[derive(Clone)]
pub(super) struct Names(pub Duration);

impl tower::Service<Name> for Names {
    type Response = std::vec::IntoIter<SocketAddr>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: Name) -> Self::Future {
        let limit = self.0;
        Box::pin(async move {
            let found = timeout(limit, lookup::addresses(name.as_str(), 0)).await;
            found.unwrap_or_else(|late| Err(late.into())).map(Vec::into_iter)
        })
    }
}
