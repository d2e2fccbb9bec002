//! Life cycle hooks. A postStart hook belongs to the start of its container; a preStop hook runs beside the worker, so that
//! a step that is cut short (a shorter grace period) finds it still under way.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use k8s_openapi::api::core::v1::{Container, LifecycleHandler, Pod};
use podlife::{
    actions::ContainerKill,
    containers::StartFailure,
    hooks::{self, HookAction},
    observed::{ObservedContainer, ObservedPod, PodIdentity, RuntimeState},
    probe::HttpGet,
    spec,
};
use tokio::{
    sync::watch,
    task::{AbortHandle, JoinSet},
    time::{Instant, timeout, timeout_at},
};
use tokio_util::sync::CancellationToken;

use super::{Tools, sync::Started, worker::PodWorker};
use crate::{events::EventType, http, runtime::RuntimeError};

/// Longest time for a postStart hook; the kubelet has no bound of its own, and a hook that hangs for ever would keep the
/// pod's later containers from starting without a word.
pub(super) const POST_START_LIMIT: Duration = Duration::from_secs(600);

/// How hooks name themselves.
const USER_AGENT: &str = "kube-lifecycle/1.32";

/// One hook of one container instance.
pub(super) struct Hook {
    pod: Arc<Pod>,
    identity: PodIdentity,
    container: Container,
    id: String,
    /// Where HTTP goes that names no host.
    address: Option<String>,
    handler: LifecycleHandler,
    tools: Tools,
}

impl Hook {
    /// The postStart hook of a container, if it has one.
    pub fn post_start(pod: &Arc<Pod>, container: &Container, id: &str, ips: &[String], tools: &Tools) -> Option<Self> {
        let handler = container.lifecycle.as_ref()?.post_start.clone()?;
        Self::new(pod, container, id, ips, handler, tools)
    }

    /// The preStop hook of a container that runs.
    fn pre_stop(pod: &Arc<Pod>, observed: &ObservedPod, of: &ObservedContainer, tools: &Tools) -> Option<Self> {
        let container = spec::container(pod, &of.name)?;
        let handler = container.lifecycle.as_ref()?.pre_stop.clone()?;
        Self::new(pod, container, &of.id, observed.ips(), handler, tools)
    }

    fn new(
        pod: &Arc<Pod>,
        container: &Container,
        id: &str,
        ips: &[String],
        handler: LifecycleHandler,
        tools: &Tools,
    ) -> Option<Self> {
        let address =
            if spec::host_network(pod) { tools.runtime.host_ips().first().cloned() } else { ips.first().cloned() };
        Some(Self {
            identity: spec::identity(pod)?,
            pod: Arc::clone(pod),
            container: container.clone(),
            id: id.to_owned(),
            address,
            handler,
            tools: tools.clone(),
        })
    }

    /// Runs the hook; the error is the kubelet's message.
    pub async fn run(&self, limit: Duration) -> Result<(), String> {
        let failed = |error: &str, output: Option<&str>| {
            Err(hooks::failure(&self.handler, &self.container.name, &self.identity, error, output))
        };
        match hooks::action(&self.handler, &self.container) {
            Err(error) => failed(&error, None),
            Ok(HookAction::Exec(command)) => {
                match timeout(limit, self.tools.runtime.run_hook(&self.id, command, limit)).await {
                    Ok(Ok(())) => Ok(()),
                    Ok(Err(error)) => failed(&error.to_string(), Some(error.output())),
                    Err(_) => failed(&format!("command timed out after {}s", limit.as_secs()), None),
                }
            }
            Ok(HookAction::Http(get)) => match timeout(limit, Box::pin(self.get(&get))).await {
                Ok(Ok(())) => Ok(()),
                Ok(Err(error)) => failed(&error, None),
                Err(_) => failed(&format!("no answer within {}s", limit.as_secs()), None),
            },
            Ok(HookAction::Sleep(pause)) => match timeout(limit, tokio::time::sleep(pause)).await {
                Ok(()) => Ok(()),
                Err(_) => failed(&format!("cut short after {}s", limit.as_secs()), None),
            },
        }
    }

    /// Any answer is success, as for the kubelet; a server that does not speak TLS is asked without.
    async fn get(&self, get: &HttpGet) -> Result<(), String> {
        let address = self.address.as_deref().unwrap_or_default();
        let error = match http::get(get, address, USER_AGENT).await {
            Ok(_) => return Ok(()),
            Err(error) => error,
        };
        let plain = HttpGet { https: false, ..get.clone() };
        if get.https && error.is_plain_server() && http::get(&plain, address, USER_AGENT).await.is_ok() {
            let host = http::join_host_port(get.host.as_deref().unwrap_or(address), get.port);
            let text = format!("request to HTTPS lifecycle hook {host} got HTTP response, retry with HTTP succeeded");
            self.tell(EventType::Warning, "LifecycleHTTPFallback", &text);
            return Ok(());
        }
        Err(error.to_string())
    }

    fn tell(&self, kind: EventType, reason: &'static str, text: &str) {
        self.tools.recorder.container(&self.pod, &self.container.name, kind, reason, text);
    }

    /// Runs it as a preStop hook: a failure is an event, and delays nothing.
    async fn run_before_stop(self, limit: Duration) {
        match timeout(limit, self.run(limit)).await {
            Ok(Ok(())) => {}
            Ok(Err(message)) => {
                tracing::warn!(
                    pod = self.identity.name,
                    container = self.container.name,
                    message,
                    "preStop hook failed"
                );
                // What a hook wrote may be secret: it is not told to everybody who may read events.
                self.tell(EventType::Warning, "FailedPreStopHook", "PreStopHook failed");
            }
            Err(_) => {
                let (pod, container) = (&self.identity.name, &self.container.name);
                tracing::info!(
                    pod,
                    container,
                    limit_s = limit.as_secs(),
                    "preStop hook not done within the grace period"
                );
            }
        }
    }
}

impl PodWorker {
    /// Runs the postStart hook of a container that has just been started; the container goes with a hook that fails.
    pub(super) async fn post_start(
        &mut self,
        container: &Container,
        id: &str,
        observed: &ObservedPod,
        cancel: &CancellationToken,
    ) -> Result<Started, RuntimeError> {
        let Some(hook) = Hook::post_start(&self.pod, container, id, observed.ips(), &self.tools) else {
            return Ok(Started::Yes);
        };
        let result = tokio::select! {
            result = hook.run(POST_START_LIMIT) => result,
            // The pod ends: its containers are stopped in a moment.
            () = cancel.cancelled() => return Ok(Started::Failed),
        };
        let Err(message) = result else { return Ok(Started::Yes) };
        tracing::warn!(pod = self.identity.name, container = container.name, message, "postStart hook failed");
        // What a hook wrote may be secret: it is not told to everybody who may read events.
        hook.tell(EventType::Warning, "FailedPostStartHook", "PostStartHook failed");
        let failure = StartFailure { reason: "PostStartHookError".into(), message };
        self.failures.insert(container.name.clone(), failure);
        let kill = ContainerKill {
            id: id.to_owned(),
            name: container.name.clone(),
            message: "FailedPostStartHook".into(),
            probe: None,
        };
        let now = self.tools.runtime.observe(&self.identity).await?;
        self.stop_some(&[kill], &now, cancel).await?;
        Ok(Started::Failed)
    }
}

/// The preStop hooks of a pod's containers: each runs once for an instance.
#[derive(Default)]
pub(super) struct PreStops {
    tasks: JoinSet<()>,
    begun: BTreeMap<String, Begun>,
}

struct Begun {
    task: AbortHandle,
    /// Closed when the hook is done.
    done: watch::Receiver<()>,
}

impl PreStops {
    /// Begins the hook of a running container that has one, unless it has begun before.
    pub fn begin(
        &mut self,
        pod: &Arc<Pod>,
        observed: &ObservedPod,
        container: &ObservedContainer,
        grace: Duration,
        tools: &Tools,
    ) {
        while self.tasks.try_join_next().is_some() {}
        if container.state != RuntimeState::Running || grace.is_zero() || self.begun.contains_key(&container.id) {
            return;
        }
        let Some(hook) = Hook::pre_stop(pod, observed, container, tools) else { return };
        let (sender, done) = watch::channel(());
        let task = self.tasks.spawn(async move {
            hook.run_before_stop(grace).await;
            drop(sender);
        });
        self.begun.insert(container.id.clone(), Begun { task, done });
    }

    /// Waits for a container's hook, if it has begun, but not beyond the deadline.
    pub async fn wait(&self, id: &str, deadline: Instant) {
        if let Some(begun) = self.begun.get(id) {
            closed(begun.done.clone(), deadline).await;
        }
    }

    /// Ends and forgets the hooks of containers that do not run any more.
    pub fn retain_running(&mut self, observed: &ObservedPod) {
        let runs = |id: &str| observed.containers.iter().any(|c| c.id == id && c.state == RuntimeState::Running);
        self.begun.retain(|id, begun| {
            let keep = runs(id);
            if !keep {
                begun.task.abort();
            }
            keep
        });
    }
}

/// Waits until the sender is gone, but not beyond the deadline.
pub(super) async fn closed(mut done: watch::Receiver<()>, deadline: Instant) {
    let end = async { while done.changed().await.is_ok() {} };
    // A hook that takes longer has had its time.
    let _ = timeout_at(deadline, end).await;
}
