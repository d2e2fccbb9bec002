//! Carries out probes: one task per container instance and kind, verdicts go into the worker's mailbox.
//!
//! The startup probe goes first; readiness and liveness begin once it has succeeded. After a failed liveness probe or any
//! verdict of a startup probe the task ends: the next instance of the container gets a new one.

use std::{collections::BTreeMap, io, sync::Arc, time::Duration};

use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, HTTPHeader, Pod};
use podlife::{
    observed::{ObservedContainer, ObservedPod, RuntimeState},
    probe::{self, ProbeAction, ProbeKind, ProbePlan, ProbeResults, Streak, Verdict},
    spec,
};
use tokio::{
    net::TcpStream,
    task::{AbortHandle, JoinSet},
    time::{Instant, sleep},
};

use super::{Tools, mailbox::Mailbox};
use crate::events::EventType;

/// Longest part of an answer that is read.
const MAX_BODY: usize = 10 * 1024;
/// Longest output in an event.
const MAX_OUTPUT: usize = 1024;

/// The probe tasks of one pod.
#[derive(Default)]
pub(super) struct Prober {
    tasks: JoinSet<()>,
    running: BTreeMap<(String, ProbeKind), AbortHandle>,
}

/// How one attempt went.
enum Attempt {
    Success,
    Failure(String),
    /// It could not be made; it does not count.
    Error(String),
}

/// One probe of one container instance.
struct Probing {
    pod: Arc<Pod>,
    container: String,
    id: String,
    kind: ProbeKind,
    plan: ProbePlan,
    action: ProbeAction,
    address: String,
    tools: Tools,
    mailbox: Arc<Mailbox>,
}

impl Prober {
    /// Starts the probes that are due for the containers that run, and ends those of containers that are gone.
    pub fn supervise(
        &mut self,
        pod: &Arc<Pod>,
        observed: &ObservedPod,
        results: &ProbeResults,
        tools: &Tools,
        mailbox: &Arc<Mailbox>,
    ) {
        while self.tasks.try_join_next().is_some() {}
        let alive = |id: &str| observed.containers.iter().any(|c| c.id == id && c.state == RuntimeState::Running);
        self.running.retain(|(id, _), task| {
            let keep = alive(id);
            if !keep {
                task.abort();
            }
            keep
        });
        let host_ips = if spec::host_network(pod) { tools.runtime.host_ips() } else { Vec::new() };
        let Some(address) = observed.ips().first().or(host_ips.first()) else { return };
        for container in
            spec::containers(pod).iter().chain(spec::init_containers(pod).iter().filter(|c| spec::is_sidecar(c)))
        {
            let newest = observed.newest(&container.name).filter(|c| c.state == RuntimeState::Running);
            let Some(instance) = newest else { continue };
            for kind in ProbeKind::ALL {
                let due = (kind == ProbeKind::Startup) != results.is_started(container, &instance.id);
                let key = (instance.id.clone(), kind);
                if !due || self.running.contains_key(&key) {
                    continue;
                }
                if let Some(probing) = Probing::new(pod, container, instance, kind, address, tools, mailbox) {
                    let since = instance
                        .started_at
                        .map_or(Duration::ZERO, |t| Timestamp::now().duration_since(t).unsigned_abs());
                    self.running.insert(key, self.tasks.spawn(probing.run(since)));
                }
            }
        }
    }

    /// Ends all probes.
    pub fn stop(&mut self) {
        self.tasks.abort_all();
        self.running.clear();
    }
}

impl Probing {
    fn new(
        pod: &Arc<Pod>,
        container: &Container,
        instance: &ObservedContainer,
        kind: ProbeKind,
        address: &str,
        tools: &Tools,
        mailbox: &Arc<Mailbox>,
    ) -> Option<Self> {
        let probe = kind.of(container)?;
        Some(Self {
            pod: Arc::clone(pod),
            container: container.name.clone(),
            id: instance.id.clone(),
            kind,
            plan: ProbePlan::new(probe),
            action: probe::action(probe, container).ok()?,
            address: address.to_owned(),
            tools: tools.clone(),
            mailbox: Arc::clone(mailbox),
        })
    }

    /// Probes until the verdict that ends it.
    async fn run(self, since_start: Duration) {
        sleep(self.plan.initial_delay.saturating_sub(since_start)).await;
        let mut streak = Streak::default();
        let mut told = None;
        loop {
            let began = Instant::now();
            let success = match self.attempt().await {
                Attempt::Success => Some(true),
                Attempt::Failure(output) => {
                    let text = format!("{} probe failed: {}", self.kind.word(), cut(&output));
                    self.tools.recorder.container(&self.pod, &self.container, EventType::Warning, "Unhealthy", text);
                    Some(false)
                }
                Attempt::Error(cause) => {
                    tracing::debug!(
                        container = self.container,
                        kind = self.kind.word(),
                        cause,
                        "probe could not be made"
                    );
                    None
                }
            };
            let verdict = success.and_then(|success| streak.add(success, &self.plan));
            if verdict.is_some() && verdict != told {
                told = verdict;
                if let Some(verdict) = verdict {
                    self.mailbox.probed(&self.id, self.kind, verdict);
                }
            }
            let over = match self.kind {
                ProbeKind::Startup => verdict.is_some(),
                ProbeKind::Liveness => verdict == Some(Verdict::Failure),
                ProbeKind::Readiness => false,
            };
            if over {
                return;
            }
            sleep(self.plan.period.saturating_sub(began.elapsed())).await;
        }
    }

    async fn attempt(&self) -> Attempt {
        if let ProbeAction::Exec(command) = &self.action {
            return self.exec(command).await;
        }
        match tokio::time::timeout(self.plan.timeout, self.connect()).await {
            Ok(attempt) => attempt,
            Err(_) => Attempt::Failure(format!("no answer within {} s", self.plan.timeout.as_secs())),
        }
    }

    async fn exec(&self, command: &[String]) -> Attempt {
        match self.tools.runtime.exec(&self.id, command.to_vec(), self.plan.timeout).await {
            Ok((0, _)) => Attempt::Success,
            Ok((_, output)) => Attempt::Failure(output),
            Err(crate::runtime::RuntimeError::Timeout { limit, .. }) => {
                Attempt::Failure(format!("command {command:?} timed out after {limit:?}"))
            }
            Err(error) => Attempt::Error(error.to_string()),
        }
    }

    async fn connect(&self) -> Attempt {
        let (host, port) = match &self.action {
            ProbeAction::Http { host, port, .. } | ProbeAction::Tcp { host, port } => (host, *port),
            ProbeAction::Exec(_) => return Attempt::Error("not a network probe".into()),
        };
        let host = host.as_deref().unwrap_or(&self.address);
        let stream = match TcpStream::connect((host, port)).await {
            Ok(stream) => stream,
            Err(error) => return Attempt::Failure(dial_error(host, port, &error)),
        };
        match &self.action {
            ProbeAction::Http { path, headers, .. } => get(stream, host, port, path, headers).await,
            _ => Attempt::Success,
        }
    }
}

/// One GET without following redirects: one within the range of success counts as such, as the kubelet has it for other hosts.
async fn get(stream: TcpStream, host: &str, port: u16, path: &str, headers: &[HTTPHeader]) -> Attempt {
    let exchange = async {
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let mut request = hyper::Request::get(path).header("Connection", "close");
        let given = |name: &str| headers.iter().any(|h| h.name.eq_ignore_ascii_case(name));
        for (name, value) in [("User-Agent", "kube-probe/1.32"), ("Accept", "*/*"), ("Host", &format!("{host}:{port}"))]
        {
            if !given(name) {
                request = request.header(name, value);
            }
        }
        for header in headers.iter().filter(|h| !h.value.is_empty()) {
            request = request.header(&header.name, &header.value);
        }
        let request = request.body(Empty::<Bytes>::new()).map_err(io::Error::other)?;
        let answer = async {
            let response = sender.send_request(request).await?;
            let status = response.status();
            // What comes beyond the limit is not needed.
            let _ = Limited::new(response.into_body(), MAX_BODY).collect().await;
            Ok::<_, Box<dyn std::error::Error + Send + Sync>>(status)
        };
        // The answer fails by itself when the connection breaks, and may be there after the connection has ended.
        let drive = async {
            let _ = connection.await;
            std::future::pending().await
        };
        tokio::select! {
            status = answer => status,
            () = drive => Err("the connection ended before the answer".into()),
        }
    };
    match exchange.await {
        Ok(status) if (200..400).contains(&status.as_u16()) => Attempt::Success,
        Ok(status) => Attempt::Failure(format!("HTTP probe failed with statuscode: {}", status.as_u16())),
        Err(error) => Attempt::Failure(format!("Get \"http://{host}:{port}{path}\": {error}")),
    }
}

fn dial_error(host: &str, port: u16, error: &io::Error) -> String {
    let cause = match error.kind() {
        io::ErrorKind::ConnectionRefused => "connect: connection refused".to_owned(),
        _ => error.to_string(),
    };
    format!("dial tcp {host}:{port}: {cause}")
}

fn cut(output: &str) -> &str {
    let end = output.char_indices().map(|(at, _)| at).take_while(|at| *at <= MAX_OUTPUT).last().unwrap_or(0);
    if output.len() <= MAX_OUTPUT { output } else { &output[..end] }
}
