//! `containerStatuses` and `initContainerStatuses` from what the runtime says.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{
        Container, ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting,
        ContainerStatus, Pod, VolumeMountStatus,
    },
    apimachinery::pkg::apis::meta::v1::Time,
};

use crate::{
    actions,
    observed::{ObservedContainer, ObservedPod, RuntimeState},
    probe::ProbeResults,
    spec,
};

/// Why the last attempt to start a container failed, by container name; cleared on success.
pub type StartFailures = BTreeMap<String, StartFailure>;

/// Waiting reason and message of a failed start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StartFailure {
    /// `ErrImagePull`, `CrashLoopBackOff`, …
    pub reason: String,
    /// Free text.
    pub message: String,
}

const UNKNOWN: &str = "ContainerStatusUnknown";
pub(crate) const LOST_AT_TERMINATION: &str = "The container could not be located when the pod was terminated";
const LOST_AT_DELETION: &str =
    "The container could not be located when the pod was deleted.  The container used to be Running";

/// What the statuses of one list of containers are made from.
pub(crate) struct ContainerInput<'a> {
    pub pod: &'a Pod,
    pub observed: &'a ObservedPod,
    pub failures: &'a StartFailures,
    pub probes: &'a ProbeResults,
    pub runtime_name: &'a str,
    /// The pod is past its end: nothing is started any more.
    pub terminal: bool,
}

impl ContainerInput<'_> {
    /// Statuses of the main containers, sorted by name.
    pub fn main(&self, previous: &[ContainerStatus]) -> Vec<ContainerStatus> {
        let mut list: Vec<_> =
            spec::containers(self.pod).iter().map(|c| self.status(c, find(previous, &c.name), false)).collect();
        list.sort_by(|a, b| a.name.cmp(&b.name));
        list
    }

    /// Statuses of the init containers, in the order of the spec.
    pub fn init(&self, previous: &[ContainerStatus]) -> Vec<ContainerStatus> {
        spec::init_containers(self.pod).iter().map(|c| self.status(c, find(previous, &c.name), true)).collect()
    }

    /// Statuses of the ephemeral containers, sorted by name. They are started once and never count for the pod.
    pub fn ephemeral(&self, previous: &[ContainerStatus]) -> Vec<ContainerStatus> {
        let made = spec::ephemeral_containers(self.pod).into_iter().map(|container| {
            let previous = find(previous, &container.name);
            let mut instances = self.observed.instances(&container.name);
            let mut status = match instances.next() {
                Some(newest) => self.observed_status(&container, newest, instances.next(), previous),
                None => {
                    let mut status = self.absent_status(&container, previous);
                    self.show_start_failure(&container, None, false, &mut status);
                    status
                }
            };
            status.volume_mounts = volume_mounts(&container);
            status.ready = false;
            status
        });
        let mut list: Vec<_> = made.collect();
        list.sort_by(|a, b| a.name.cmp(&b.name));
        list
    }

    fn status(&self, container: &Container, previous: Option<&ContainerStatus>, init: bool) -> ContainerStatus {
        let mut instances = self.observed.instances(&container.name);
        let newest = instances.next();
        let mut status = match newest {
            Some(newest) => self.observed_status(container, newest, instances.next(), previous),
            None => self.absent_status(container, previous),
        };
        self.show_start_failure(container, newest, init, &mut status);
        status.volume_mounts = volume_mounts(container);
        let running = status.state.as_ref().is_some_and(|s| s.running.is_some());
        let id = newest.map_or("", |n| n.id.as_str());
        let started = running && self.probes.is_started(container, id);
        status.started = Some(started);
        status.ready = if init && !spec::is_sidecar(container) {
            exit_code(status.state.as_ref()) == Some(0)
        } else {
            started && self.probes.is_ready(container, id)
        };
        status
    }

    fn observed_status(
        &self,
        container: &Container,
        newest: &ObservedContainer,
        second: Option<&ObservedContainer>,
        previous: Option<&ContainerStatus>,
    ) -> ContainerStatus {
        let mut restart_count = i32::try_from(newest.restart_count).unwrap_or(i32::MAX);
        let state = match newest.state {
            RuntimeState::Running => running(newest),
            RuntimeState::Created => waiting(None),
            RuntimeState::Exited => self.terminated(newest),
            RuntimeState::Unknown if previous.is_some_and(is_running) => {
                restart_count = previous.map_or(0, |p| p.restart_count) + 1;
                lost(LOST_AT_TERMINATION)
            }
            RuntimeState::Unknown => waiting(None),
        };
        let last_state = second
            .filter(|s| s.state == RuntimeState::Exited)
            .map_or_else(ContainerState::default, |s| self.terminated(s));
        ContainerStatus {
            name: container.name.clone(),
            state: Some(state),
            last_state: Some(last_state),
            restart_count,
            image: newest.image.clone(),
            image_id: newest.image_ref.clone(),
            container_id: Some(format!("{}://{}", self.runtime_name, newest.id)),
            ..ContainerStatus::default()
        }
    }

    fn absent_status(&self, container: &Container, previous: Option<&ContainerStatus>) -> ContainerStatus {
        if let Some(previous) = previous.filter(|p| exit_code(p.state.as_ref()).is_some()) {
            return ContainerStatus {
                last_state: Some(previous.last_state.clone().unwrap_or_default()),
                ..previous.clone()
            };
        }
        let mut restart_count = previous.map_or(0, |p| p.restart_count);
        let mut last_state = previous.and_then(|p| p.last_state.clone()).unwrap_or_default();
        if previous.is_some_and(is_running) && last_state.terminated.is_none() {
            last_state = lost(LOST_AT_DELETION);
            if !spec::is_deleted(self.pod) {
                restart_count += 1;
            }
        }
        let reason = if spec::init_containers(self.pod).is_empty() { "ContainerCreating" } else { "PodInitializing" };
        ContainerStatus {
            name: container.name.clone(),
            state: Some(waiting(Some(reason))),
            last_state: Some(last_state),
            restart_count,
            image: container.image.clone().unwrap_or_default(),
            ..ContainerStatus::default()
        }
    }

    /// A container that is about to be restarted and could not be shows why, and its end moves to `lastState`.
    fn show_start_failure(
        &self,
        container: &Container,
        newest: Option<&ObservedContainer>,
        init: bool,
        status: &mut ContainerStatus,
    ) {
        let Some(failure) = self.failures.get(&container.name) else { return };
        let succeeded_init = init && !spec::is_sidecar(container) && exit_code(status.state.as_ref()) == Some(0);
        if self.terminal || succeeded_init || !actions::should_start(self.pod, container, newest) {
            return;
        }
        let waiting = ContainerState {
            waiting: Some(ContainerStateWaiting {
                reason: Some(failure.reason.clone()),
                message: Some(failure.message.clone()).filter(|m| !m.is_empty()),
            }),
            ..ContainerState::default()
        };
        let before = status.state.replace(waiting);
        if before.as_ref().is_some_and(|s| s.terminated.is_some()) {
            status.last_state = before;
        }
    }

    fn terminated(&self, container: &ObservedContainer) -> ContainerState {
        ContainerState {
            terminated: Some(ContainerStateTerminated {
                exit_code: container.exit_code,
                reason: Some(container.reason.clone()).filter(|r| !r.is_empty()),
                message: Some(container.message.clone()).filter(|m| !m.is_empty()),
                started_at: container.started_at.map(seconds),
                finished_at: container.finished_at.map(seconds),
                container_id: Some(format!("{}://{}", self.runtime_name, container.id)),
                ..ContainerStateTerminated::default()
            }),
            ..ContainerState::default()
        }
    }
}

/// Restart count for the next instance of a container: one more than the newest that is known.
pub fn next_restart_count(newest: Option<&ObservedContainer>, status: Option<&ContainerStatus>) -> u32 {
    if let Some(newest) = newest {
        return newest.restart_count.saturating_add(1);
    }
    // The runtime lost it (its data was wiped): the status knows, and has counted a lost running one already.
    let Some(status) = status else { return 0 };
    let count = u32::try_from(status.restart_count).unwrap_or(0);
    if exit_code(status.state.as_ref()).is_some() { count.saturating_add(1) } else { count }
}

/// Exit code of a terminated state.
pub(crate) fn exit_code(state: Option<&ContainerState>) -> Option<i32> {
    state?.terminated.as_ref().map(|t| t.exit_code)
}

/// A time as statuses carry it: whole seconds.
pub(crate) fn seconds(time: Timestamp) -> Time {
    Time(Timestamp::from_second(time.as_second()).unwrap_or(time))
}

fn find<'a>(list: &'a [ContainerStatus], name: &str) -> Option<&'a ContainerStatus> {
    list.iter().find(|s| s.name == name)
}

fn is_running(status: &ContainerStatus) -> bool {
    status.state.as_ref().is_some_and(|s| s.running.is_some())
}

fn running(container: &ObservedContainer) -> ContainerState {
    ContainerState {
        running: Some(ContainerStateRunning { started_at: container.started_at.map(seconds) }),
        ..ContainerState::default()
    }
}

fn waiting(reason: Option<&str>) -> ContainerState {
    ContainerState {
        waiting: Some(ContainerStateWaiting { reason: reason.map(Into::into), message: None }),
        ..ContainerState::default()
    }
}

pub(crate) fn lost(message: &str) -> ContainerState {
    ContainerState {
        terminated: Some(ContainerStateTerminated {
            exit_code: 137,
            reason: Some(UNKNOWN.into()),
            message: Some(message.into()),
            ..ContainerStateTerminated::default()
        }),
        ..ContainerState::default()
    }
}

fn volume_mounts(container: &Container) -> Option<Vec<VolumeMountStatus>> {
    let mounts = container.volume_mounts.as_ref().filter(|mounts| !mounts.is_empty())?;
    Some(
        mounts
            .iter()
            .map(|mount| {
                let read_only = mount.read_only.unwrap_or(false);
                VolumeMountStatus {
                    name: mount.name.clone(),
                    mount_path: mount.mount_path.clone(),
                    read_only: read_only.then_some(true),
                    recursive_read_only: read_only.then(|| "Disabled".into()),
                }
            })
            .collect(),
    )
}
