//! Requests to MetaManager, in upstream's message shapes (KubeEdge v1.23, metaclient).
//!
//! Everything that edged reads from or writes to the Kubernetes API goes through here: MetaManager answers
//! from its store where it may, and asks the cloud where it must.

use std::time::Duration;

use beehive::{Context, SendError, SendSyncError, compose};
use serde::de::DeserializeOwned;
use wire::{AnswerError, Content, ContentError, Message, Status, group, kind, operation, source};

/// How long a request to MetaManager may take, the cloud's answer included.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);

/// Handle for requests to MetaManager. Cheap to clone.
#[derive(Clone)]
pub struct MetaClient {
    context: Context,
}

/// A request that did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum MetaError {
    /// No answer.
    #[error("no answer from MetaManager")]
    Request(#[source] SendSyncError),
    /// A message without answer could not be handed over.
    #[error("MetaManager does not take messages")]
    Post(#[source] SendError),
    /// MetaManager said no in words: the cloud is out of reach, or its store failed.
    #[error("{0}")]
    Failed(String),
    /// The API server said no.
    #[error("{}", .0.message)]
    Refused(Box<Status>),
    /// The answer makes no sense.
    #[error("the answer about {resource} has not the expected shape")]
    Shape {
        /// What was asked for.
        resource: String,
        /// Cause.
        #[source]
        source: ContentError,
    },
    /// The request could not be written.
    #[error("the content for {resource} cannot be written")]
    Encode {
        /// What the request is about.
        resource: String,
        /// Cause.
        #[source]
        source: ContentError,
    },
}

impl MetaError {
    /// The API server knows no such object.
    pub fn is_not_found(&self) -> bool {
        matches!(self, MetaError::Refused(status) if status.code == 404 || status.reason == "NotFound")
    }

    /// The object of this name is another one: its UID differs from the precondition.
    pub fn is_other_object(&self) -> bool {
        matches!(self, MetaError::Refused(status)
            if (status.code == 409 || status.reason == "Conflict") && status.message.to_lowercase().contains("uid"))
    }

    /// The API server refused for a reason that a retry does not cure.
    pub fn is_final(&self) -> bool {
        matches!(self, MetaError::Refused(status) if matches!(status.code, 400 | 403 | 404 | 405 | 422))
    }
}

impl MetaClient {
    /// A client on this bus.
    pub fn new(context: Context) -> Self {
        Self { context }
    }

    /// Sends a request and returns the content of its answer as it is.
    pub async fn request(&self, operation: &str, resource: &str, content: Content) -> Result<Content, MetaError> {
        let message = compose::message(source::EDGED, group::META, operation, resource, content);
        let answer =
            self.context.send_sync("metamanager", message, REQUEST_TIMEOUT).await.map_err(MetaError::Request)?;
        if answer.route.operation == operation::ERROR {
            let text = String::from_utf8_lossy(&answer.content.payload()).into_owned();
            return Err(MetaError::Failed(text));
        }
        Ok(answer.content)
    }

    /// Reads one object; `None` when it does not exist. The content is the object's JSON.
    pub async fn get_raw(&self, namespace: &str, kind: &str, name: &str) -> Result<Option<Content>, MetaError> {
        // A pod may say anything; nothing bears no name.
        if name.is_empty() {
            return Ok(None);
        }
        let resource = format!("{namespace}/{kind}/{name}");
        let content = self.request(operation::QUERY, &resource, Content::null()).await?;
        match object(&resource, content) {
            Err(error) if error.is_not_found() => Ok(None),
            other => other,
        }
    }

    /// Reads one object; `None` when it does not exist.
    pub async fn get<T: DeserializeOwned>(
        &self,
        namespace: &str,
        kind: &str,
        name: &str,
    ) -> Result<Option<T>, MetaError> {
        let Some(content) = self.get_raw(namespace, kind, name).await? else { return Ok(None) };
        let resource = || format!("{namespace}/{kind}/{name}");
        content.parse().map(Some).map_err(|source| MetaError::Shape { resource: resource(), source })
    }

    /// Sends a request that changes an object and returns the object as the API has it now, if the answer carries one.
    pub async fn write(&self, operation: &str, resource: &str, content: Content) -> Result<Option<Content>, MetaError> {
        let answer = self.request(operation, resource, content).await?;
        if answer.is_ok() {
            return Ok(None);
        }
        object(resource, answer)
    }

    /// Sends a patch text (strategic merge) for the status of a pod or node.
    pub async fn patch(
        &self,
        namespace: &str,
        kind: &str,
        name: &str,
        patch: &str,
    ) -> Result<Option<Content>, MetaError> {
        self.write(operation::PATCH, &format!("{namespace}/{kind}/{name}"), Content::text(patch)).await
    }

    /// Asks the API to delete a pod that has ended, without further grace: the one of this UID, or, where none is given, any
    /// of this name.
    pub async fn delete_pod(&self, namespace: &str, name: &str, uid: Option<&str>) -> Result<(), MetaError> {
        let resource = format!("{namespace}/{}/{name}", kind::POD);
        let options = serde_json::json!({
            "gracePeriodSeconds": 0,
            "preconditions": uid.map_or(serde_json::json!({}), |uid| serde_json::json!({"uid": uid})),
        });
        let content =
            Content::json(&options).map_err(|source| MetaError::Encode { resource: resource.clone(), source })?;
        let answer = self.request(operation::DELETE, &resource, content).await?;
        if answer.is_ok() {
            return Ok(());
        }
        match object(&resource, answer)? {
            Some(other) if !other.is_null() => {
                Err(MetaError::Failed(format!("deleting {resource} was answered with something else than OK")))
            }
            _ => Ok(()),
        }
    }

    /// Asks for all stored pods; the answer comes as a message into edged's inbox, or here when MetaManager answers directly.
    pub async fn list_pods(&self, namespace: &str) -> Result<Vec<Content>, MetaError> {
        let resource = format!("{namespace}/{}", kind::POD);
        let content = self.request(operation::QUERY, &resource, Content::null()).await?;
        list(&resource, &content)
    }

    /// Sends a message that nobody answers.
    pub async fn post(&self, operation: &str, resource: &str, content: Content) -> Result<(), MetaError> {
        let message = compose::message(source::EDGED, group::META, operation, resource, content);
        self.context.send("metamanager", message).await.map_err(MetaError::Post)
    }

    /// Answers a message that edged received.
    pub fn respond(&self, request: &Message, content: Content) -> bool {
        self.context.respond(compose::response(request, content))
    }
}

/// The objects of a list answer: an array whose elements are objects, or strings that hold an object's JSON.
pub fn list(resource: &str, content: &Content) -> Result<Vec<Content>, MetaError> {
    let shape = |source| MetaError::Shape { resource: resource.to_owned(), source };
    if content.is_null() {
        return Ok(Vec::new());
    }
    let items: Vec<Box<serde_json::value::RawValue>> = content.parse().map_err(shape)?;
    items
        .into_iter()
        .map(|item| {
            let content = Content::from_raw(String::from(Box::<str>::from(item)).into()).map_err(shape)?;
            Content::from_raw(content.payload().into_owned().into()).map_err(shape)
        })
        .collect()
}

/// The object of an answer in any of its forms: bare, `{"Object","Err"}`, `{"ErrStatus"}`, or MetaManager's list of
/// zero or one stored values.
fn object(resource: &str, content: Content) -> Result<Option<Content>, MetaError> {
    if content.is_null() {
        return Ok(None);
    }
    if content.payload().first() == Some(&b'[') {
        return Ok(list(resource, &content)?.into_iter().next());
    }
    content.object().map_err(|error| match error {
        AnswerError::Refused(status) => MetaError::Refused(status),
        AnswerError::Text(text) => MetaError::Failed(text),
        AnswerError::Shape(source) => MetaError::Shape { resource: resource.to_owned(), source },
    })
}
