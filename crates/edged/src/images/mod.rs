//! Images: present or pulled by policy, with back-off, events and waiting reasons as the kubelet has them.

mod credentials;
mod reference;

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Container, Pod, Secret};
use tokio_util::sync::CancellationToken;

use crate::container::security::ImageUser;
use crate::cri::{CriClient, proto};
use crate::events::{EventType, Recorder};
use crate::meta::MetaClient;
use crate::runtime::StartError;

use reference::with_default_tag;

/// First wait after a failed pull.
const BACKOFF_INITIAL: Duration = Duration::from_secs(10);
/// Longest wait.
const BACKOFF_MAX: Duration = Duration::from_secs(300);
/// Failures that are remembered; beyond it the oldest are forgotten, which costs an early pull.
const MAX_FAILURES: usize = 512;

/// An image that a container can be created from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResolvedImage {
    /// Reference for the runtime.
    pub reference: String,
    /// Its user.
    pub user: ImageUser,
}

/// The image step of container starts. One for the whole node: pulls go one by one.
#[derive(Default)]
pub struct Images {
    pulling: tokio::sync::Mutex<()>,
    failures: Mutex<HashMap<(String, String), Failure>>,
}

/// The last failed pull of an image for a pod.
#[derive(Clone)]
struct Failure {
    reason: &'static str,
    message: String,
    delay: Duration,
    at: Instant,
}

/// What an image is wanted for.
pub struct ImageRequest<'a> {
    /// The pod.
    pub pod: &'a Pod,
    /// Its container.
    pub container: &'a Container,
    /// Sandbox configuration, which the runtime may look at when it pulls.
    pub sandbox_config: proto::PodSandboxConfig,
    /// Ends a pull.
    pub cancel: &'a CancellationToken,
}

/// Everything that the image step talks to.
pub struct ImageTools<'a> {
    /// The runtime.
    pub cri: &'a CriClient,
    /// Pull secrets.
    pub meta: &'a MetaClient,
    /// Events.
    pub recorder: &'a Recorder,
}

impl Images {
    /// Makes the image of a container present, as its pull policy says.
    ///
    /// # Errors
    /// The waiting reason and text of the container.
    pub async fn ensure(
        &self,
        tools: &ImageTools<'_>,
        request: &ImageRequest<'_>,
    ) -> Result<ResolvedImage, StartError> {
        let result = self.try_ensure(tools, request).await;
        if let Err(error) = &result {
            let text = format!("Error: {}", error.reason);
            tools.recorder.container(request.pod, &request.container.name, EventType::Warning, "Failed", text);
        }
        result
    }

    async fn try_ensure(
        &self,
        tools: &ImageTools<'_>,
        request: &ImageRequest<'_>,
    ) -> Result<ResolvedImage, StartError> {
        let wanted = request.container.image.as_deref().unwrap_or_default();
        let event = |kind, reason, text: String| {
            tools.recorder.container(request.pod, &request.container.name, kind, reason, text);
        };
        let image = with_default_tag(wanted).map_err(|error| {
            let message = format!("Failed to apply default image tag {wanted:?}: {error}");
            event(EventType::Warning, "InspectFailed", message.clone());
            StartError { reason: "InvalidImageName", message }
        })?;
        let policy = pull_policy(request.container, &image);
        if policy != PullPolicy::Always {
            let found = tools.cri.image(&image).await.map_err(|error| {
                let message = format!("Failed to inspect image {image:?}: {}", error.message());
                event(EventType::Warning, "InspectFailed", message.clone());
                StartError { reason: "ImageInspectError", message }
            })?;
            if let Some(found) = found {
                let text = format!("Container image {wanted:?} already present on machine");
                event(EventType::Normal, "Pulled", text);
                return Ok(resolved(found.id.clone(), &found));
            }
            if policy == PullPolicy::Never {
                let message = format!("Container image {wanted:?} is not present with pull policy of Never");
                event(EventType::Warning, "ErrImageNeverPull", message.clone());
                return Err(StartError { reason: "ErrImageNeverPull", message });
            }
        }
        self.pull(tools, request, wanted, &image).await
    }

    async fn pull(
        &self,
        tools: &ImageTools<'_>,
        request: &ImageRequest<'_>,
        wanted: &str,
        image: &str,
    ) -> Result<ResolvedImage, StartError> {
        let event = |kind, reason, text: String| {
            tools.recorder.container(request.pod, &request.container.name, kind, reason, text);
        };
        let key = (request.pod.metadata.uid.clone().unwrap_or_default(), image.to_owned());
        let now = Instant::now();
        let last = self.failures().get(&key).cloned();
        if let Some(failure) = last.as_ref().filter(|failure| now.duration_since(failure.at) < failure.delay) {
            let text = format!("Back-off pulling image {wanted:?}");
            event(EventType::Normal, "BackOff", text.clone());
            let message = format!("{text}: {}: {}", failure.reason, failure.message);
            return Err(StartError { reason: "ImagePullBackOff", message });
        }
        event(EventType::Normal, "Pulling", format!("Pulling image {wanted:?}"));
        let pulled = tokio::select! {
            pulled = self.pull_in_turn(tools, request, image) => pulled,
            () = request.cancel.cancelled() => {
                return Err(StartError { reason: "ErrImagePull", message: "the pull was cut short: the pod is ending".into() });
            }
        };
        match pulled {
            Ok((pulled, alone)) => {
                self.failures().remove(&key);
                let text = format!(
                    "Successfully pulled image {wanted:?} in {} ({} including waiting)",
                    seconds(alone),
                    seconds(now.elapsed())
                );
                event(EventType::Normal, "Pulled", text);
                Ok(pulled)
            }
            Err((reason, message)) => {
                event(EventType::Warning, "Failed", format!("Failed to pull image {wanted:?}: {message}"));
                let fresh = last.filter(|failure| now.duration_since(failure.at) < failure.delay + 2 * BACKOFF_MAX);
                let delay = fresh.map_or(BACKOFF_INITIAL, |failure| (failure.delay * 2).min(BACKOFF_MAX));
                let failure = Failure { reason, message: message.clone(), delay, at: Instant::now() };
                self.remember(key, failure);
                Err(StartError { reason, message })
            }
        }
    }

    /// Returns the image and how long the pull alone took.
    async fn pull_in_turn(
        &self,
        tools: &ImageTools<'_>,
        request: &ImageRequest<'_>,
        image: &str,
    ) -> Result<(ResolvedImage, Duration), (&'static str, String)> {
        let _turn = self.pulling.lock().await;
        let start = Instant::now();
        let mut failure = None;
        for auth in self.credentials(tools, request.pod, image).await {
            match tools.cri.pull_image(image, auth, request.sandbox_config.clone()).await {
                Ok(reference) => {
                    let found = tools.cri.image(&reference).await.ok().flatten().unwrap_or_default();
                    return Ok((resolved(reference, &found), start.elapsed()));
                }
                Err(error) => failure = Some(error.message()),
            }
        }
        let message = failure.unwrap_or_default();
        let reason = ["RegistryUnavailable", "SignatureValidationFailed"]
            .into_iter()
            .find(|reason| message.contains(&format!("desc = {reason}")))
            .unwrap_or("ErrImagePull");
        Err((reason, message))
    }

    /// Credentials to try one after the other; `None` (no credentials) when nothing fits.
    async fn credentials(&self, tools: &ImageTools<'_>, pod: &Pod, image: &str) -> Vec<Option<proto::AuthConfig>> {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
        let mut fitting = Vec::new();
        let wanted = pod.spec.as_ref().and_then(|s| s.image_pull_secrets.as_deref()).unwrap_or_default();
        for reference in wanted {
            match tools.meta.get::<Secret>(namespace, wire::kind::SECRET, &reference.name).await {
                Ok(Some(secret)) => fitting.extend(credentials::matching(&secret, image)),
                Ok(None) | Err(_) => {
                    let text = format!(
                        "Unable to retrieve some image pull secrets ({}); attempting to pull the image may not succeed.",
                        reference.name
                    );
                    tools.recorder.pod(pod, EventType::Warning, "FailedToRetrieveImagePullSecret", text);
                }
            }
        }
        if fitting.is_empty() { vec![None] } else { fitting.into_iter().map(Some).collect() }
    }

    /// Forgets failed pulls of a pod that is gone.
    pub fn forget_pod(&self, uid: &str) {
        self.failures().retain(|(pod, _), _| pod != uid);
    }

    fn remember(&self, key: (String, String), failure: Failure) {
        let mut failures = self.failures();
        if failures.len() >= MAX_FAILURES
            && let Some(oldest) = failures.iter().min_by_key(|(_, failure)| failure.at).map(|(key, _)| key.clone())
        {
            failures.remove(&oldest);
        }
        failures.insert(key, failure);
    }

    fn failures(&self) -> std::sync::MutexGuard<'_, HashMap<(String, String), Failure>> {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PullPolicy {
    Always,
    IfNotPresent,
    Never,
}

/// The API fills the policy in; static pods come without.
fn pull_policy(container: &Container, image: &str) -> PullPolicy {
    match container.image_pull_policy.as_deref() {
        Some("Always") => PullPolicy::Always,
        Some("IfNotPresent") => PullPolicy::IfNotPresent,
        Some("Never") => PullPolicy::Never,
        _ if image.ends_with(":latest") => PullPolicy::Always,
        _ => PullPolicy::IfNotPresent,
    }
}

fn resolved(reference: String, image: &proto::Image) -> ResolvedImage {
    let user = ImageUser { uid: image.uid.map(|uid| uid.value), username: image.username.clone() };
    ResolvedImage { reference, user }
}

/// `1.234s`, as Go prints durations of this size.
fn seconds(duration: Duration) -> String {
    format!("{:.3}s", duration.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies() {
        let policy = |written: Option<&str>, image: &str| {
            let container = Container { image_pull_policy: written.map(str::to_owned), ..Default::default() };
            pull_policy(&container, image)
        };
        assert_eq!(policy(None, "a:latest"), PullPolicy::Always);
        assert_eq!(policy(None, "a:1"), PullPolicy::IfNotPresent);
        assert_eq!(policy(Some("Never"), "a:latest"), PullPolicy::Never);
    }
}
