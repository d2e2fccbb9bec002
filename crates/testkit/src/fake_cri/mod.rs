//! A container runtime in memory: CRI v1 on a unix socket, for tests of the node agent.
//!
//! It keeps sandboxes and containers as containerd does, answers at once, and does on request what a real runtime does at
//! the worst moment: fails the next call ([`FakeCri::fail_next`]), hangs ([`FakeCri::hang`]), loses a process
//! ([`FakeCri::exit_container`]), reboots ([`FakeCri::reboot`]) or goes away ([`FakeCri::stop_serving`]). What it was asked
//! is in [`FakeCri::calls`]. Start reading in `world`.

mod images;
mod service;
mod world;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use anyhow::{Context, Result};
use tokio::net::UnixListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::Code;
use tonic::transport::Server;

use crate::cri as proto;
use proto::image_service_server::ImageServiceServer;
use proto::runtime_service_server::RuntimeServiceServer;
use service::Service;
pub use world::{CrashPoint, FakeContainer, FakeSandbox, State};
use world::{Fault, Trap, World};

/// A runtime that lives until it is dropped.
pub struct FakeCri {
    socket: PathBuf,
    shared: Arc<Shared>,
    serving: Option<Serving>,
}

struct Serving {
    stop: CancellationToken,
    task: JoinHandle<()>,
}

/// What the handle and the server share.
struct Shared {
    world: Mutex<World>,
    /// Wakes those who wait for a state or for the end of a hang.
    changed: tokio::sync::Notify,
    events: tokio::sync::broadcast::Sender<proto::ContainerEventResponse>,
}

/// How long open calls may take to break when the server goes away.
const STOP_LIMIT: std::time::Duration = std::time::Duration::from_secs(5);

/// Events that a slow reader may lag behind.
const EVENT_QUEUE: usize = 64;

impl Shared {
    fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl FakeCri {
    /// Serves on `dir/cri.sock`. Keep `dir` short: a socket's path has at most 107 bytes.
    pub async fn start(dir: &Path) -> Result<Self> {
        std::fs::create_dir_all(dir)?;
        let (events, _) = tokio::sync::broadcast::channel(EVENT_QUEUE);
        let shared = Arc::new(Shared { world: Mutex::new(World::new()), changed: tokio::sync::Notify::new(), events });
        let mut fake = Self { socket: dir.join("cri.sock"), shared, serving: None };
        fake.serve().await?;
        Ok(fake)
    }

    /// Serves again after [`FakeCri::stop_serving`], with everything it knew.
    pub async fn serve(&mut self) -> Result<()> {
        drop(std::fs::remove_file(&self.socket));
        let listener = UnixListener::bind(&self.socket).with_context(|| self.socket.display().to_string())?;
        let incoming = futures_util::stream::unfold(listener, |listener| async move {
            let accepted = listener.accept().await.map(|(stream, _)| stream);
            Some((accepted, listener))
        });
        let stop = CancellationToken::new();
        let service = Service::new(self.shared.clone(), stop.clone());
        let server = Server::builder()
            .add_service(RuntimeServiceServer::new(service.clone()))
            .add_service(ImageServiceServer::new(service))
            .serve_with_incoming_shutdown(incoming, stop.clone().cancelled_owned());
        #[expect(clippy::disallowed_methods, reason = "the handle owns the task and aborts it on drop")]
        let task = tokio::spawn(async move { drop(server.await) });
        self.serving = Some(Serving { stop, task });
        Ok(())
    }

    /// The socket disappears and open calls break, as when the runtime is stopped. Containers live on.
    pub async fn stop_serving(&mut self) {
        if let Some(serving) = self.serving.take() {
            serving.stop.cancel();
            drop(tokio::time::timeout(STOP_LIMIT, serving.task).await);
        }
        drop(std::fs::remove_file(&self.socket));
    }

    /// `unix:///…/cri.sock`.
    pub fn endpoint(&self) -> String {
        format!("unix://{}", self.socket.display())
    }

    /// Makes an image present, as `docker.io/library/busybox:1`.
    pub fn add_image(&self, image: &str) {
        self.shared.world().images.insert(image.to_owned());
    }

    /// Removes an image from the node.
    pub fn remove_image(&self, image: &str) {
        self.shared.world().images.remove(image);
    }

    /// Lets `PullImage` of this image succeed. Any other pull fails with the words of a registry that lacks it.
    pub fn add_to_registry(&self, image: &str) {
        self.shared.world().registry.insert(image.to_owned());
    }

    /// The next call of this method (`CreateContainer`) fails with code Unknown; several add up.
    pub fn fail_next(&self, call: &str, message: &str) {
        self.fail_next_with(call, Code::Unknown, message);
    }

    /// As [`FakeCri::fail_next`], with a code.
    pub fn fail_next_with(&self, call: &str, code: Code, message: &str) {
        let fault = Fault { code, message: message.to_owned() };
        self.shared.world().faults.entry(call.to_owned()).or_default().push_back(fault);
    }

    /// Every call of this method waits until [`FakeCri::release`].
    pub fn hang(&self, call: &str) {
        self.shared.world().hanging.insert(call.to_owned());
    }

    /// Ends [`FakeCri::hang`].
    pub fn release(&self, call: &str) {
        self.shared.world().hanging.remove(call);
        self.shared.changed.notify_waiters();
    }

    /// The next call of this method never has an answer; those after it do.
    pub fn hang_next(&self, call: &str) {
        self.shared.world().hanging_once.insert(call.to_owned());
    }

    /// The call with this number from now on hangs, at this point of it.
    pub fn trap(&self, number: usize, point: CrashPoint) {
        let mut world = self.shared.world();
        world.sprung = false;
        world.trap = Some(Trap { left: number, point });
    }

    /// Whether a call has gone into the trap.
    pub fn sprung(&self) -> bool {
        self.shared.world().sprung
    }

    /// Takes the trap away.
    pub fn disarm(&self) {
        let mut world = self.shared.world();
        (world.trap, world.caught) = (None, None);
    }

    /// What must never happen and has: two ready sandboxes of a pod, two running containers of a name.
    pub fn violations(&self) -> Vec<String> {
        self.shared.world().violations.clone()
    }

    /// UIDs of the pods of which the agent stopped a running container.
    pub fn stopped_pods(&self) -> Vec<String> {
        self.shared.world().stopped.clone()
    }

    /// The next lists are empty, whatever there is.
    pub fn empty_lists(&self, count: usize) {
        self.shared.world().empty_lists = count;
    }

    /// How many lists are still to be empty.
    pub fn lists_left(&self) -> usize {
        self.shared.world().empty_lists
    }

    /// Lists show a sandbox and a container more, of which nothing else is known, and some without any fields.
    pub fn list_ghosts(&self, ghosts: bool) {
        self.shared.world().ghosts = ghosts;
    }

    /// The runtime's clock is off by this many seconds from now on.
    pub fn shift_times(&self, seconds: i64) {
        self.shared.world().time_offset = seconds * 1_000_000_000;
    }

    /// `GetContainerEvents` works from now on; without this it is unimplemented, as in containerd 1.6.
    pub fn enable_events(&self) {
        self.shared.world().events_enabled = true;
    }

    /// `Status` tells of these handlers from now on, by name; each can do everything.
    pub fn set_handlers(&self, names: &[&str]) {
        let features = proto::RuntimeHandlerFeatures { recursive_read_only_mounts: true, user_namespaces: true };
        let handler = |name: &&str| proto::RuntimeHandler { name: (*name).to_owned(), features: Some(features) };
        self.shared.world().handlers = names.iter().map(handler).collect();
    }

    /// What `Status` says of runtime and network; `None` is ready.
    pub fn set_readiness(&self, runtime_error: Option<&str>, network_error: Option<&str>) {
        let mut world = self.shared.world();
        world.runtime_error = runtime_error.map(str::to_owned);
        world.network_error = network_error.map(str::to_owned);
    }

    /// The process of a running container ends by itself.
    pub fn exit_container(&self, id: &str, code: i32) {
        let event = self.shared.world().exit(id, code, if code == 0 { "Completed" } else { "Error" });
        self.publish(event);
    }

    /// As [`FakeCri::exit_container`], found by pod and container name; the newest instance.
    ///
    /// # Errors
    /// No such container runs.
    pub fn exit_named(&self, pod: &str, container: &str, code: i32) -> Result<()> {
        let found = self.containers().into_iter().rev().find(|c| c.runs(pod, container));
        let found = found.with_context(|| format!("no running container {container} of pod {pod}"))?;
        self.exit_container(&found.id, code);
        Ok(())
    }

    /// Containers of this name end by themselves with this code as soon as they start.
    pub fn exit_on_start(&self, container: &str, code: i32) {
        self.shared.world().exit_on_start.insert(container.to_owned(), code);
    }

    /// Containers of this name keep running when they start (ends [`FakeCri::exit_on_start`]).
    pub fn keep_running(&self, container: &str) {
        self.shared.world().exit_on_start.remove(container);
    }

    /// Containers of this name ignore SIGTERM: a stop waits for its timeout, the exit code is 137.
    pub fn ignore_term(&self, container: &str) {
        self.shared.world().ignore_term.insert(container.to_owned());
    }

    /// `ExecSync` in containers of this name ends with this code.
    pub fn set_exec_result(&self, container: &str, code: i32, stdout: &str) {
        self.shared.world().exec.insert(container.to_owned(), (code, stdout.to_owned()));
    }

    /// All processes are gone: sandboxes not ready, containers exited with 255, as after a reboot of the machine.
    pub fn reboot(&self) {
        let mut world = self.shared.world();
        let ids: Vec<String> = world.containers.keys().cloned().collect();
        for id in ids {
            world.exit(&id, 255, "Unknown");
        }
        for sandbox in world.sandboxes.values_mut() {
            sandbox.ready = false;
        }
    }

    /// A sandbox stops by itself with all its containers.
    pub fn kill_sandbox(&self, id: &str) {
        self.shared.world().stop_sandbox(id);
    }

    /// Sandboxes, oldest first.
    pub fn sandboxes(&self) -> Vec<FakeSandbox> {
        let mut all: Vec<_> = self.shared.world().sandboxes.values().cloned().collect();
        all.sort_by_key(|sandbox| sandbox.created_at);
        all
    }

    /// Containers, oldest first.
    pub fn containers(&self) -> Vec<FakeContainer> {
        let mut all: Vec<_> = self.shared.world().containers.values().cloned().collect();
        all.sort_by_key(|container| container.created_at);
        all
    }

    /// Names of the calls so far in order of arrival; `Status`, `Version` and the lists are left out.
    pub fn calls(&self) -> Vec<String> {
        self.shared.world().calls.clone()
    }

    /// How often a method was called, lists and `Status` included.
    pub fn count(&self, call: &str) -> usize {
        self.shared.world().counts.get(call).copied().unwrap_or_default()
    }

    /// Forgets the calls so far.
    pub fn clear_calls(&self) {
        let mut world = self.shared.world();
        world.calls.clear();
        world.counts.clear();
    }

    /// Waits until this holds.
    ///
    /// # Errors
    /// It does not hold within the time.
    pub async fn wait_until(&self, limit: std::time::Duration, holds: impl Fn(&Self) -> bool) -> Result<()> {
        let waiting = async {
            loop {
                let mut changed = std::pin::pin!(self.shared.changed.notified());
                changed.as_mut().enable();
                if holds(self) {
                    return;
                }
                changed.await;
            }
        };
        tokio::time::timeout(limit, waiting)
            .await
            .map_err(|_| anyhow::anyhow!("not within {limit:?}; calls so far: {:?}", self.calls()))
    }

    fn publish(&self, event: Option<proto::ContainerEventResponse>) {
        self.shared.publish(event);
    }
}

impl Shared {
    fn publish(&self, event: Option<proto::ContainerEventResponse>) {
        if let Some(event) = event {
            // Nobody may be listening.
            drop(self.events.send(event));
        }
        self.changed.notify_waiters();
    }
}

impl Drop for FakeCri {
    fn drop(&mut self) {
        if let Some(serving) = self.serving.take() {
            serving.stop.cancel();
            serving.task.abort();
        }
        drop(std::fs::remove_file(&self.socket));
    }
}
