//! The node's API for other modules: asked in process, whether it has a port or not.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use http::{Request, Response, StatusCode};
use link::http_server::Body;
use tokio::sync::watch;

use super::answer;

/// Answers a request of somebody who may ask everything. Its body, if it had one, is not read; what
/// [`hyper::upgrade`] needs is in its extensions.
pub type Answerer = Arc<dyn Fn(Request<()>) -> BoxFuture<'static, Response<Body>> + Send + Sync>;

/// Handle to the node's API. It answers as if the one who asks had shown the token.
#[derive(Clone)]
pub struct NodeApi(watch::Receiver<Option<Answerer>>);

impl NodeApi {
    /// Of whoever answers at the time; nobody while the agent does not run.
    pub fn new(answerer: watch::Receiver<Option<Answerer>>) -> Self {
        Self(answerer)
    }

    /// Answers; with 503 while the agent does not run. A request that asks for an upgrade as HTTP/1.1 does gets it.
    pub async fn answer<B>(&self, request: Request<B>) -> Response<Body> {
        let answerer = self.0.borrow().clone();
        match answerer {
            Some(answerer) => answerer(request.map(drop)).await,
            None => {
                answer::text(StatusCode::SERVICE_UNAVAILABLE, "the node's agent does not run: try again in a moment")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    #[tokio::test]
    async fn it_answers_while_somebody_is_there() {
        let answerer: Answerer =
            Arc::new(|request| Box::pin(async move { answer::text(StatusCode::OK, request.uri().path()) }));
        let (sender, receiver) = watch::channel(None);
        let api = NodeApi::new(receiver);
        let ask = async || {
            let answer = api.answer(Request::get("/pods").body("not read").unwrap()).await;
            let status = answer.status();
            (status.as_u16(), answer.into_body().collect().await.unwrap().to_bytes())
        };
        assert_eq!(ask().await.0, 503);
        sender.send_replace(Some(answerer));
        assert_eq!(ask().await, (200, "/pods".into()));
        sender.send_replace(None);
        let (status, text) = ask().await;
        assert!(status == 503 && text.starts_with(b"the node's agent does not run"));
    }
}
