//! `status.phase` from the statuses of the containers.

use k8s_openapi::api::core::v1::{Container, ContainerStatus, Pod};

use crate::{
    containers::exit_code,
    spec::{self, RestartPolicy},
};

/// Phase of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Not all containers have run yet.
    Pending,
    /// At least one runs or will be restarted.
    Running,
    /// All ended with exit code 0.
    Succeeded,
    /// All ended, at least one in failure.
    Failed,
}

impl Phase {
    /// The API's word.
    pub fn as_str(self) -> &'static str {
        match self {
            Phase::Pending => "Pending",
            Phase::Running => "Running",
            Phase::Succeeded => "Succeeded",
            Phase::Failed => "Failed",
        }
    }

    /// Parses the API's word.
    pub fn parse(text: &str) -> Option<Phase> {
        [Phase::Pending, Phase::Running, Phase::Succeeded, Phase::Failed].into_iter().find(|p| p.as_str() == text)
    }

    /// No pod leaves it.
    pub fn is_terminal(self) -> bool {
        matches!(self, Phase::Succeeded | Phase::Failed)
    }
}

#[derive(Default)]
struct Counts {
    unknown: usize,
    running: usize,
    waiting: usize,
    stopped: usize,
    succeeded: usize,
    pending_init: usize,
    pending_sidecar: usize,
    failed_init: usize,
    main_begun: bool,
}

/// Computes the phase. `terminal` tells that the agent has ended the pod, so nothing restarts any more.
pub fn phase(pod: &Pod, init: &[ContainerStatus], main: &[ContainerStatus], terminal: bool) -> Phase {
    let counts = count(pod, init, main);
    let policy = spec::restart_policy(pod);
    let all_stopped = counts.running == 0 && counts.stopped > 0 && counts.unknown == 0;
    let all_succeeded = counts.stopped == counts.succeeded;
    if counts.failed_init > 0 && policy == RestartPolicy::Never {
        Phase::Failed
    } else if counts.pending_init > 0
        || (counts.pending_sidecar > 0 && !counts.main_begun)
        || counts.waiting > 0
        || (counts.running > 0 && counts.unknown > 0)
    {
        Phase::Pending
    } else if counts.running > 0 {
        Phase::Running
    } else if !all_stopped {
        Phase::Pending
    } else if terminal && !spec::is_static(pod) {
        if all_succeeded { Phase::Succeeded } else { Phase::Failed }
    } else if policy == RestartPolicy::Always {
        Phase::Running
    } else if all_succeeded {
        Phase::Succeeded
    } else if policy == RestartPolicy::Never {
        Phase::Failed
    } else {
        Phase::Running
    }
}

fn count(pod: &Pod, init: &[ContainerStatus], main: &[ContainerStatus]) -> Counts {
    let mut counts = Counts::default();
    for container in spec::init_containers(pod) {
        let status = init.iter().find(|s| s.name == container.name);
        if spec::is_sidecar(container) {
            count_sidecar(status, &mut counts);
        } else {
            count_init(status, &mut counts);
        }
    }
    for container in spec::containers(pod) {
        count_main(container, main, &mut counts);
    }
    counts
}

fn count_init(status: Option<&ContainerStatus>, counts: &mut Counts) {
    let state = status.and_then(|s| s.state.as_ref());
    let last = status.and_then(|s| s.last_state.as_ref());
    if state.is_some_and(|s| s.running.is_some()) {
        counts.pending_init += 1;
    } else if let Some(code) = exit_code(state) {
        counts.failed_init += usize::from(code != 0);
    } else if let Some(code) = exit_code(last).filter(|_| state.is_some_and(|s| s.waiting.is_some())) {
        counts.failed_init += usize::from(code != 0);
    } else {
        counts.pending_init += 1;
    }
}

fn count_sidecar(status: Option<&ContainerStatus>, counts: &mut Counts) {
    let state = status.and_then(|s| s.state.as_ref());
    if state.is_some_and(|s| s.running.is_some()) {
        counts.running += 1;
        counts.pending_sidecar += usize::from(!status.and_then(|s| s.started).unwrap_or(false));
    } else if exit_code(state).is_some() {
        // Ended sidecars do not matter: they are restarted or the pod is over.
    } else if state.is_some_and(|s| s.waiting.is_some()) {
        if exit_code(status.and_then(|s| s.last_state.as_ref())).is_none() {
            counts.waiting += 1;
            counts.pending_sidecar += 1;
        }
    } else {
        counts.unknown += 1;
    }
}

fn count_main(container: &Container, main: &[ContainerStatus], counts: &mut Counts) {
    let status = main.iter().find(|s| s.name == container.name);
    let state = status.and_then(|s| s.state.as_ref());
    if state.is_some_and(|s| s.running.is_some()) {
        counts.running += 1;
        counts.main_begun = true;
    } else if let Some(code) = exit_code(state) {
        counts.stopped += 1;
        counts.succeeded += usize::from(code == 0);
        counts.main_begun = true;
    } else if state.is_some_and(|s| s.waiting.is_some()) {
        if exit_code(status.and_then(|s| s.last_state.as_ref())).is_some() {
            counts.stopped += 1;
        } else {
            counts.waiting += 1;
        }
    } else {
        counts.unknown += 1;
    }
}
