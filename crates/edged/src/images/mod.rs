//! Images: present or pulled by policy, with back-off, events and waiting reasons as the kubelet has them.

mod credentials;
mod gc;
mod reference;
mod turns;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Container, Pod, Secret};
use tokio_util::sync::CancellationToken;

use crate::container::security::ImageUser;
use crate::cri::{CriClient, CriError, proto};
use crate::events::{EventType, Recorder};
use crate::meta::MetaClient;
use crate::runtime::StartError;
use crate::settings::Settings;

use credentials::Logins;
pub use gc::ImageCollector;
use reference::with_default_tag;
use turns::{LONGEST_TURN, Turns};

/// First wait after a failed pull.
const BACKOFF_INITIAL: Duration = Duration::from_secs(10);
/// Longest wait.
const BACKOFF_MAX: Duration = Duration::from_secs(300);
/// Failures that are remembered; beyond it the oldest are forgotten, which costs an early pull.
const MAX_FAILURES: usize = 512;
/// Images whose use is remembered until garbage collection asks; what goes beyond looks unused for a while.
const MAX_USES: usize = 1024;

/// An image that a container can be created from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResolvedImage {
    /// Reference for the runtime.
    pub reference: String,
    /// Its user.
    pub user: ImageUser,
}

/// The image step of container starts. One for the whole node: pulls go one by one.
pub struct Images {
    turns: Turns,
    root_dir: PathBuf,
    failures: Mutex<HashMap<(String, String), Failure>>,
    /// When containers were last made from images, by their reference.
    uses: Mutex<HashMap<String, Instant>>,
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
    /// The container has run here before: a node that is cut off runs it again from what it has, whatever the pull policy.
    pub ran_before: bool,
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
    /// The image step of a node with these settings.
    pub fn new(settings: &Settings) -> Self {
        Self {
            turns: Turns::new(settings),
            root_dir: settings.root_dir.clone(),
            failures: Mutex::default(),
            uses: Mutex::default(),
        }
    }

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
        if let Ok(image) = &result {
            self.note_use(&image.reference);
        }
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
            Ok(pulled) => {
                self.failures().remove(&key);
                let text = format!(
                    "Successfully pulled image {wanted:?} in {} ({} including waiting). Image size: {} bytes.",
                    go_seconds(pulled.alone),
                    go_seconds(now.elapsed()),
                    pulled.size
                );
                event(EventType::Normal, "Pulled", text);
                Ok(pulled.image)
            }
            Err((reason, message)) => {
                event(EventType::Warning, "Failed", format!("Failed to pull image {wanted:?}: {message}"));
                if request.ran_before
                    && is_out_of_reach(&message)
                    && let Ok(Some(found)) = tools.cri.image(image).await
                {
                    let text = format!(
                        "Registry is out of reach; container image {wanted:?} present on machine is used again"
                    );
                    event(EventType::Normal, "Pulled", text);
                    return Ok(resolved(found.id.clone(), &found));
                }
                let fresh = last.filter(|failure| failure.at.elapsed() <= 2 * BACKOFF_MAX);
                let delay = fresh.map_or(BACKOFF_INITIAL, |failure| (failure.delay * 2).min(BACKOFF_MAX));
                let failure = Failure { reason, message: message.clone(), delay, at: Instant::now() };
                self.remember(key, failure);
                Err(StartError { reason, message })
            }
        }
    }

    /// Pulls with each of the credentials that fit until one works.
    async fn pull_in_turn(
        &self,
        tools: &ImageTools<'_>,
        request: &ImageRequest<'_>,
        image: &str,
    ) -> Result<Pulled, (&'static str, String)> {
        let credentials = self.credentials(tools, request.pod, image).await;
        let turn = self.turns.wait().await;
        let start = Instant::now();
        let pull = async {
            let mut failures: Vec<String> = Vec::new();
            for auth in credentials {
                if !self.turns.admit(Instant::now()) {
                    failures.push("pull QPS exceeded".to_owned());
                    break;
                }
                let annotations = request.pod.metadata.annotations.clone().unwrap_or_default();
                match tools.cri.pull_image(image, annotations, auth, request.sandbox_config.clone()).await {
                    Ok(reference) => return Ok(reference),
                    Err(error) => failures.push(pull_message(&error)),
                }
            }
            failures.dedup();
            Err(if failures.len() == 1 { failures.remove(0) } else { format!("[{}]", failures.join(", ")) })
        };
        let mut pull = std::pin::pin!(pull);
        let pulled = tokio::select! {
            pulled = &mut pull => pulled,
            () = tokio::time::sleep(LONGEST_TURN) => {
                tracing::warn!(image, "a pull takes long; others no longer wait for it");
                drop(turn);
                pull.await
            }
        };
        let reference = pulled.map_err(|message| pull_failure(&message, image))?;
        let found = tools.cri.image(&reference).await.ok().flatten().unwrap_or_default();
        Ok(Pulled { alone: start.elapsed(), size: found.size, image: resolved(reference, &found) })
    }

    /// Credentials to try one after the other, those of the pod first; `None` (no credentials) when nothing fits.
    async fn credentials(&self, tools: &ImageTools<'_>, pod: &Pod, image: &str) -> Vec<Option<proto::AuthConfig>> {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
        let warn = |text: String| tools.recorder.pod(pod, EventType::Warning, "FailedToRetrieveImagePullSecret", text);
        let (mut logins, mut missing) = (Logins::default(), Vec::new());
        let wanted = pod.spec.as_ref().and_then(|s| s.image_pull_secrets.as_deref()).unwrap_or_default();
        for reference in wanted {
            match tools.meta.get::<Secret>(namespace, wire::kind::SECRET, &reference.name).await {
                Ok(Some(secret)) => {
                    if let Err(error) = logins.add_secret(&secret) {
                        warn(format!("image pull secret {} cannot be used: {error}", reference.name));
                    }
                }
                Ok(None) | Err(_) => missing.push(reference.name.as_str()),
            }
        }
        if !missing.is_empty() {
            warn(format!(
                "Unable to retrieve some image pull secrets ({}); attempting to pull the image may not succeed.",
                missing.join(", ")
            ));
        }
        let mut fitting = logins.matching(image);
        fitting.extend(credentials::node_logins(&self.root_dir).matching(image));
        if fitting.is_empty() { vec![None] } else { fitting.into_iter().map(Some).collect() }
    }

    fn note_use(&self, reference: &str) {
        let mut uses = self.uses.lock().unwrap_or_else(PoisonError::into_inner);
        if uses.len() < MAX_USES || uses.contains_key(reference) {
            uses.insert(reference.to_owned(), Instant::now());
        }
    }

    /// Takes what was noted of the use of images.
    pub fn take_uses(&self) -> HashMap<String, Instant> {
        std::mem::take(&mut self.uses.lock().unwrap_or_else(PoisonError::into_inner))
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

/// What a pull brought.
struct Pulled {
    image: ResolvedImage,
    /// Time of the pull without waiting for its turn.
    alone: Duration,
    size: u64,
}

/// The runtime's words; the code Unknown says nothing and is left out.
fn pull_message(error: &CriError) -> String {
    error.unknown_message().unwrap_or_else(|| error.message())
}

/// Reason and message of a failed pull, by how the runtime's words begin.
fn pull_failure(message: &str, image: &str) -> (&'static str, String) {
    for (reason, what) in [
        ("RegistryUnavailable", "the registry is unavailable"),
        ("SignatureValidationFailed", "the signature validation failed"),
    ] {
        if let Some(detail) = message.strip_prefix(reason) {
            return (reason, format!("image pull failed for {image} because {what}{detail}"));
        }
    }
    ("ErrImagePull", message.to_owned())
}

/// The registry did not answer at all, so that it cannot have said no.
fn is_out_of_reach(message: &str) -> bool {
    ["dial tcp", "no such host", "i/o timeout", "TLS handshake timeout"].iter().any(|sign| message.contains(sign))
}

/// A duration in milliseconds as Go prints it: `313ms`, `1.594s`, `1m2s`.
fn go_seconds(duration: Duration) -> String {
    let millis = duration.as_millis();
    if millis == 0 {
        return "0s".to_owned();
    }
    if millis < 1000 {
        return format!("{millis}ms");
    }
    let (minutes, rest) = (millis / 60_000, millis % 60_000);
    let fraction = format!(".{:03}", rest % 1000);
    let seconds = format!("{}{}s", rest / 1000, fraction.trim_end_matches('0').trim_end_matches('.'));
    match minutes {
        0 => seconds,
        1..60 => format!("{minutes}m{seconds}"),
        _ => format!("{}h{}m{seconds}", minutes / 60, minutes % 60),
    }
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

    #[test]
    fn durations_like_go() {
        for (millis, text) in
            [(0, "0s"), (313, "313ms"), (1594, "1.594s"), (2000, "2s"), (62_050, "1m2.05s"), (3_600_000, "1h0m0s")]
        {
            assert_eq!(go_seconds(Duration::from_millis(millis)), text);
        }
    }

    #[test]
    fn reasons_of_failed_pulls() {
        assert_eq!(
            pull_failure("RegistryUnavailable: try later", "a:1"),
            ("RegistryUnavailable", "image pull failed for a:1 because the registry is unavailable: try later".into())
        );
        assert_eq!(pull_failure("no route", "a:1"), ("ErrImagePull", "no route".into()));
    }
}
