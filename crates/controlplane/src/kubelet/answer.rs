//! The body of a node's answer, which moves its connection on while it is read: a reader that pauses stops the node, one that goes away
//! closes the connection.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Mutex, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::{Frame, Incoming, SizeHint};
use link::http_server::Body;

/// A connection to a node, which may be polled after its end.
pub(super) type Connection = Pin<Box<dyn Future<Output = ()> + Send>>;

struct Connected {
    body: Incoming,
    /// Bodies must be shareable between threads, which a connection need not be: only its owner ever polls it.
    connection: Mutex<Connection>,
}

/// The body together with the connection that it comes from.
pub(super) fn with_connection(body: Incoming, connection: Connection) -> Body {
    Connected { body, connection: Mutex::new(connection) }.boxed()
}

impl hyper::body::Body for Connected {
    type Data = Bytes;
    type Error = Box<dyn std::error::Error + Send + Sync>;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let connection = self.connection.get_mut().unwrap_or_else(PoisonError::into_inner);
        // Its end, and how it ended, are told by the body.
        let _ = connection.as_mut().poll(context);
        Pin::new(&mut self.body).poll_frame(context).map_err(Into::into)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
