//! What the container runtime says about a pod, free of CRI types.
//!
//! The shell lists sandboxes and containers, keeps those that carry the identity labels of Kubernetes
//! (`io.kubernetes.pod.uid` and its companions) and hands them over in this form.

use jiff::Timestamp;

/// Identity of a pod as labels and messages carry it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PodIdentity {
    /// `metadata.namespace`.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
    /// `metadata.uid`; the only key that never repeats.
    pub uid: String,
}

/// Everything that the runtime holds of one pod.
#[derive(Clone, Debug, PartialEq)]
pub struct ObservedPod {
    /// Identity from the labels.
    pub identity: PodIdentity,
    /// Sandboxes, newest first (see [`ObservedPod::sort`]).
    pub sandboxes: Vec<ObservedSandbox>,
    /// Containers of all names, newest first.
    pub containers: Vec<ObservedContainer>,
}

/// One pod sandbox.
#[derive(Clone, Debug, PartialEq)]
pub struct ObservedSandbox {
    /// Id given by the runtime.
    pub id: String,
    /// `metadata.attempt` of the sandbox.
    pub attempt: u32,
    /// The runtime calls it ready.
    pub ready: bool,
    /// Creation time.
    pub created_at: Timestamp,
    /// It uses the network namespace of the node.
    pub host_network: bool,
    /// IPs in the order reported; `None` when the runtime reports no network status at all.
    pub ips: Option<Vec<String>>,
}

/// State of a container in the runtime.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RuntimeState {
    /// Created, never started.
    Created,
    /// Its process lives.
    Running,
    /// Its process ended.
    Exited,
    /// The runtime lost track of it.
    Unknown,
}

/// One instance of a container.
#[derive(Clone, Debug, PartialEq)]
pub struct ObservedContainer {
    /// Id given by the runtime, without the runtime's name.
    pub id: String,
    /// Container name from the label.
    pub name: String,
    /// Sandbox it lives in.
    pub sandbox_id: String,
    /// Its state.
    pub state: RuntimeState,
    /// Creation time.
    pub created_at: Timestamp,
    /// Start time, once started.
    pub started_at: Option<Timestamp>,
    /// End time, once exited.
    pub finished_at: Option<Timestamp>,
    /// Exit code; meaningful when exited.
    pub exit_code: i32,
    /// Reason given by the runtime (`Completed`, `Error`, `OOMKilled`), may be empty.
    pub reason: String,
    /// Message of the runtime plus the termination message, may be empty.
    pub message: String,
    /// Image as the pod's author wrote it.
    pub image: String,
    /// Resolved image reference (`imageID` of the status).
    pub image_ref: String,
    /// Annotation `io.kubernetes.container.hash`.
    pub hash: Option<u32>,
    /// Annotation `io.kubernetes.container.restartCount`, 0 when absent.
    pub restart_count: u32,
    /// Annotation `io.kubernetes.pod.terminationGracePeriod`, seconds.
    pub termination_grace: Option<i64>,
    /// Annotation `io.kubernetes.container.preStopHandler`, JSON.
    pub pre_stop: Option<String>,
    /// Annotation `io.kubernetes.container.ports`, JSON.
    pub ports: Option<String>,
    /// The resources that it was made with, JSON; only of one that is started again to be resized.
    pub resources: Option<String>,
}

impl ObservedContainer {
    /// Its process never lived: it was only made, or could not be started.
    pub fn never_ran(&self) -> bool {
        match self.state {
            RuntimeState::Created => true,
            RuntimeState::Exited => self.started_at.is_none(),
            RuntimeState::Running | RuntimeState::Unknown => false,
        }
    }
}

impl ObservedPod {
    /// A pod of which the runtime knows nothing.
    pub fn absent(identity: PodIdentity) -> Self {
        Self { identity, sandboxes: Vec::new(), containers: Vec::new() }
    }

    /// Puts sandboxes and containers newest first, which every reader relies on. The numbers count before the times: a clock
    /// that was set back makes a new instance look older than the one that it replaces.
    pub fn sort(&mut self) {
        self.sandboxes.sort_by_key(|s| std::cmp::Reverse((s.attempt, s.created_at)));
        self.containers.sort_by_key(|c| std::cmp::Reverse((c.restart_count, c.created_at)));
    }

    /// The newest instance of a container.
    pub fn newest(&self, name: &str) -> Option<&ObservedContainer> {
        self.containers.iter().find(|c| c.name == name)
    }

    /// All instances of a container, newest first.
    pub fn instances<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a ObservedContainer> {
        self.containers.iter().filter(move |c| c.name == name)
    }

    /// Whether any container may still have a live process.
    pub fn has_live_containers(&self) -> bool {
        self.containers.iter().any(|c| matches!(c.state, RuntimeState::Running | RuntimeState::Unknown))
    }

    /// Whether the runtime holds nothing of this pod.
    pub fn is_absent(&self) -> bool {
        self.sandboxes.is_empty() && self.containers.is_empty()
    }

    /// IPs of the newest sandbox that reports any.
    pub fn ips(&self) -> &[String] {
        self.sandboxes.iter().find_map(|s| s.ips.as_deref().filter(|ips| !ips.is_empty())).unwrap_or_default()
    }
}
