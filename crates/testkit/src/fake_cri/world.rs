//! What the fake runtime holds, and how it changes.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::time::{SystemTime, UNIX_EPOCH};

use tonic::{Code, Status};

use crate::cri as proto;

const POD_UID: &str = "io.kubernetes.pod.uid";

/// State of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Created, never started.
    Created,
    /// Runs.
    Running,
    /// Ended.
    Exited,
}

/// One sandbox.
#[derive(Clone, Debug)]
pub struct FakeSandbox {
    /// Id.
    pub id: String,
    /// The configuration that it was made from.
    pub config: proto::PodSandboxConfig,
    /// It serves containers.
    pub ready: bool,
    /// Nanoseconds since 1970.
    pub created_at: i64,
    /// Its address; empty in the node's network.
    pub ip: String,
}

/// One container.
#[derive(Clone, Debug)]
pub struct FakeContainer {
    /// Id.
    pub id: String,
    /// Its sandbox.
    pub sandbox_id: String,
    /// Pod name of its sandbox.
    pub pod: String,
    /// The configuration that it was made from.
    pub config: proto::ContainerConfig,
    /// State.
    pub state: State,
    /// Nanoseconds since 1970.
    pub created_at: i64,
    /// Nanoseconds since 1970, 0 before.
    pub started_at: i64,
    /// Nanoseconds since 1970, 0 before.
    pub finished_at: i64,
    /// Exit code.
    pub exit_code: i32,
    /// `Completed`, `Error`.
    pub reason: String,
}

impl FakeContainer {
    /// Container name.
    pub fn name(&self) -> &str {
        self.config.metadata.as_ref().map_or("", |metadata| &metadata.name)
    }

    /// Whether this is that container of that pod, and it runs.
    pub fn runs(&self, pod: &str, container: &str) -> bool {
        self.state == State::Running && self.pod == pod && self.name() == container
    }

    /// UID of its pod.
    pub fn uid(&self) -> Option<&str> {
        self.config.labels.get(POD_UID).map(String::as_str)
    }

    /// Value of an environment variable.
    pub fn env(&self, key: &str) -> Option<String> {
        let found = self.config.envs.iter().find(|env| env.key == key)?;
        Some(String::from_utf8_lossy(&found.value).into_owned())
    }
}

/// Where a trapped call hangs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CrashPoint {
    /// It never takes effect.
    Before,
    /// It has taken effect, the answer does not arrive.
    After,
    /// It takes effect a little later, when the caller may have gone: a runtime finishes what it has begun.
    Late,
}

/// Waits for a number of calls.
pub(super) struct Trap {
    pub left: usize,
    pub point: CrashPoint,
}

pub(super) struct Fault {
    pub code: Code,
    pub message: String,
}

pub(super) struct World {
    pub sandboxes: BTreeMap<String, FakeSandbox>,
    pub containers: BTreeMap<String, FakeContainer>,
    pub images: BTreeSet<String>,
    pub registry: BTreeSet<String>,
    pub faults: HashMap<String, VecDeque<Fault>>,
    pub hanging: BTreeSet<String>,
    /// Calls of which only the next hangs.
    pub hanging_once: BTreeSet<String>,
    pub trap: Option<Trap>,
    /// The call that the trap lets take effect before it hangs, or after the caller has gone.
    pub caught: Option<(&'static str, CrashPoint)>,
    pub sprung: bool,
    pub violations: Vec<String>,
    /// UIDs of pods of which a running container was stopped.
    pub stopped: Vec<String>,
    /// Lists that are still to be answered as if there were nothing.
    pub empty_lists: usize,
    pub ghosts: bool,
    /// Nanoseconds by which the runtime's clock is off.
    pub time_offset: i64,
    pub calls: Vec<String>,
    pub counts: HashMap<String, usize>,
    pub exit_on_start: HashMap<String, i32>,
    pub ignore_term: BTreeSet<String>,
    pub exec: HashMap<String, (i32, String)>,
    pub runtime_error: Option<String>,
    pub network_error: Option<String>,
    pub events_enabled: bool,
    /// What `Status` says of handlers.
    pub handlers: Vec<proto::RuntimeHandler>,
    last_id: u32,
    last_time: i64,
}

impl World {
    pub fn new() -> Self {
        Self {
            sandboxes: BTreeMap::new(),
            containers: BTreeMap::new(),
            images: BTreeSet::new(),
            registry: BTreeSet::new(),
            faults: HashMap::new(),
            hanging: BTreeSet::new(),
            hanging_once: BTreeSet::new(),
            trap: None,
            caught: None,
            sprung: false,
            violations: Vec::new(),
            stopped: Vec::new(),
            empty_lists: 0,
            ghosts: false,
            time_offset: 0,
            calls: Vec::new(),
            counts: HashMap::new(),
            exit_on_start: HashMap::new(),
            ignore_term: BTreeSet::new(),
            exec: HashMap::new(),
            runtime_error: None,
            network_error: None,
            events_enabled: false,
            handlers: Vec::new(),
            last_id: 0,
            last_time: 0,
        }
    }

    /// A clock that never shows the same time twice.
    fn now(&mut self) -> i64 {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos());
        self.last_time = i64::try_from(now).unwrap_or(i64::MAX).max(self.last_time + 1);
        self.last_time + self.time_offset
    }

    /// 64 hexadecimal digits, as containerd's ids have.
    fn new_id(&mut self) -> String {
        self.last_id += 1;
        format!("{:08x}{}", self.last_id, "0".repeat(56))
    }

    pub fn run_sandbox(&mut self, config: proto::PodSandboxConfig) -> Result<String, Status> {
        let metadata = config.metadata.clone().unwrap_or_default();
        let same = |sandbox: &FakeSandbox| sandbox.config.metadata.as_ref() == Some(&metadata);
        if let Some(holder) = self.sandboxes.values().find(|sandbox| same(sandbox)) {
            let name = format!("{}_{}_{}_{}", metadata.name, metadata.namespace, metadata.uid, metadata.attempt);
            let text =
                format!("failed to reserve sandbox name {name:?}: name {name:?} is reserved for {:?}", holder.id);
            return Err(Status::unknown(text));
        }
        let pod_uid = config.labels.get(POD_UID).cloned();
        if self.sandboxes.values().any(|s| s.ready && s.config.labels.get(POD_UID) == pod_uid.as_ref()) {
            self.violations.push(format!("a second ready sandbox of {}", metadata.name));
        }
        let id = self.new_id();
        let host_network = network_of(&config) == proto::NamespaceMode::Node as i32;
        let ip = if host_network {
            String::new()
        } else {
            format!("10.99.{}.{}", self.last_id / 250, self.last_id % 250 + 2)
        };
        let created_at = self.now();
        self.sandboxes.insert(id.clone(), FakeSandbox { id: id.clone(), config, ready: true, created_at, ip });
        Ok(id)
    }

    /// Exits its containers too, as a real runtime does. An unknown id is fine.
    pub fn stop_sandbox(&mut self, id: &str) {
        let inside: Vec<String> =
            self.containers.values().filter(|c| c.sandbox_id == id).map(|c| c.id.clone()).collect();
        for container in inside {
            self.stop(&container, 137);
        }
        if let Some(sandbox) = self.sandboxes.get_mut(id) {
            sandbox.ready = false;
        }
    }

    pub fn remove_sandbox(&mut self, id: &str) {
        self.stop_sandbox(id);
        self.containers.retain(|_, container| container.sandbox_id != id);
        self.sandboxes.remove(id);
    }

    pub fn create_container(&mut self, request: proto::CreateContainerRequest) -> Result<String, Status> {
        let sandbox = self.sandboxes.get(&request.pod_sandbox_id).filter(|sandbox| sandbox.ready);
        let sandbox =
            sandbox.ok_or_else(|| Status::not_found(format!("sandbox {:?} not found", request.pod_sandbox_id)))?;
        let pod = sandbox.config.metadata.as_ref().map(|m| m.name.clone()).unwrap_or_default();
        let config = request.config.unwrap_or_default();
        let same = |other: &FakeContainer| {
            other.sandbox_id == request.pod_sandbox_id && other.config.metadata == config.metadata
        };
        if let Some(holder) = self.containers.values().find(|other| same(other)) {
            return Err(Status::unknown(format!("failed to reserve container name: reserved for {:?}", holder.id)));
        }
        let id = self.new_id();
        let container = FakeContainer {
            id: id.clone(),
            sandbox_id: request.pod_sandbox_id,
            pod,
            config,
            state: State::Created,
            created_at: self.now(),
            started_at: 0,
            finished_at: 0,
            exit_code: 0,
            reason: String::new(),
        };
        self.containers.insert(id.clone(), container);
        Ok(id)
    }

    pub fn start_container(&mut self, id: &str) -> Result<proto::ContainerEventResponse, Status> {
        let now = self.now();
        let twin = self.containers.get(id).and_then(|container| {
            let same = |other: &&FakeContainer| other.uid() == container.uid() && other.name() == container.name();
            self.containers.values().filter(same).find(|other| other.state == State::Running)
        });
        if let Some(twin) = twin {
            let violation = format!("a second running container {} of {}", twin.name(), twin.pod);
            self.violations.push(violation);
        }
        let exit = {
            let exits = self.exit_on_start.clone();
            let container = self.containers.get_mut(id).ok_or_else(|| not_found("container", id))?;
            if container.state != State::Created {
                return Err(Status::failed_precondition(format!("container {id:?} is not in created state")));
            }
            container.state = State::Running;
            container.started_at = now;
            exits.get(container.name()).copied()
        };
        if let Some(code) = exit {
            self.exit(id, code, if code == 0 { "Completed" } else { "Error" });
        }
        Ok(self.event(id, proto::ContainerEventType::ContainerStartedEvent))
    }

    /// Ends a running container; nothing happens to any other.
    pub fn exit(&mut self, id: &str, code: i32, reason: &str) -> Option<proto::ContainerEventResponse> {
        let now = self.now();
        let container = self.containers.get_mut(id)?;
        if container.state != State::Running {
            return None;
        }
        container.state = State::Exited;
        container.finished_at = now;
        container.exit_code = code;
        container.reason = reason.to_owned();
        Some(self.event(id, proto::ContainerEventType::ContainerStoppedEvent))
    }

    /// Ends a running container because the agent asked for it.
    pub fn stop(&mut self, id: &str, code: i32) -> Option<proto::ContainerEventResponse> {
        let event = self.exit(id, code, "Error")?;
        let uid = self.containers.get(id).and_then(FakeContainer::uid).map(str::to_owned);
        self.stopped.extend(uid);
        Some(event)
    }

    /// Whether a list is to be answered as if there were nothing; counts down.
    pub fn is_list_empty(&mut self) -> bool {
        let empty = self.empty_lists > 0;
        self.empty_lists = self.empty_lists.saturating_sub(1);
        empty
    }

    /// Counts a call down to the trap. The point at which this call is to hang.
    pub fn trap(&mut self, call: &'static str) -> Option<CrashPoint> {
        let trap = self.trap.as_mut()?;
        trap.left = trap.left.saturating_sub(1);
        if trap.left > 0 {
            return None;
        }
        let point = trap.point;
        self.trap = None;
        match point {
            CrashPoint::Before => self.sprung = true,
            _ => self.caught = Some((call, point)),
        }
        Some(point)
    }

    pub fn event(&self, id: &str, kind: proto::ContainerEventType) -> proto::ContainerEventResponse {
        let container = self.containers.get(id);
        let sandbox = container.and_then(|c| self.sandboxes.get(&c.sandbox_id));
        proto::ContainerEventResponse {
            container_id: id.to_owned(),
            container_event_type: kind as i32,
            created_at: self.last_time,
            pod_sandbox_status: sandbox.map(FakeSandbox::status),
        }
    }
}

pub(super) fn not_found(what: &str, id: &str) -> Status {
    Status::not_found(format!("an error occurred when try to find {what} {id:?}: not found"))
}

fn network_of(config: &proto::PodSandboxConfig) -> i32 {
    let context = config.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
    context.and_then(|context| context.namespace_options.as_ref()).map_or(0, |options| options.network)
}

impl FakeSandbox {
    fn sandbox_state(&self) -> i32 {
        if self.ready {
            proto::PodSandboxState::SandboxReady as i32
        } else {
            proto::PodSandboxState::SandboxNotready as i32
        }
    }

    pub(super) fn status(&self) -> proto::PodSandboxStatus {
        let options = proto::NamespaceOption { network: network_of(&self.config), ..Default::default() };
        proto::PodSandboxStatus {
            id: self.id.clone(),
            metadata: self.config.metadata.clone(),
            state: self.sandbox_state(),
            created_at: self.created_at,
            network: Some(proto::PodSandboxNetworkStatus { ip: self.ip.clone(), additional_ips: Vec::new() }),
            linux: Some(proto::LinuxPodSandboxStatus { namespaces: Some(proto::Namespace { options: Some(options) }) }),
            labels: self.config.labels.clone(),
            annotations: self.config.annotations.clone(),
        }
    }

    pub(super) fn item(&self) -> proto::PodSandbox {
        proto::PodSandbox {
            id: self.id.clone(),
            metadata: self.config.metadata.clone(),
            state: self.sandbox_state(),
            created_at: self.created_at,
            labels: self.config.labels.clone(),
            annotations: self.config.annotations.clone(),
        }
    }
}

impl FakeContainer {
    fn container_state(&self) -> i32 {
        (match self.state {
            State::Created => proto::ContainerState::ContainerCreated,
            State::Running => proto::ContainerState::ContainerRunning,
            State::Exited => proto::ContainerState::ContainerExited,
        }) as i32
    }

    fn image_ref(&self) -> String {
        self.config.image.as_ref().map(|image| image.image.clone()).unwrap_or_default()
    }

    pub(super) fn item(&self) -> proto::Container {
        proto::Container {
            id: self.id.clone(),
            pod_sandbox_id: self.sandbox_id.clone(),
            metadata: self.config.metadata.clone(),
            image: self.config.image.clone(),
            image_ref: self.image_ref(),
            state: self.container_state(),
            created_at: self.created_at,
            labels: self.config.labels.clone(),
            annotations: self.config.annotations.clone(),
        }
    }

    pub(super) fn status(&self) -> proto::ContainerStatus {
        proto::ContainerStatus {
            id: self.id.clone(),
            metadata: self.config.metadata.clone(),
            state: self.container_state(),
            created_at: self.created_at,
            started_at: self.started_at,
            finished_at: self.finished_at,
            exit_code: self.exit_code,
            image: self.config.image.clone(),
            image_ref: self.image_ref(),
            reason: self.reason.clone(),
            message: String::new(),
            labels: self.config.labels.clone(),
            annotations: self.config.annotations.clone(),
            mounts: self.config.mounts.clone(),
            log_path: self.config.log_path.clone(),
        }
    }
}
