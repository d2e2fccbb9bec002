//! The module `edged`: puts the parts together and passes MetaManager's messages on.

use std::{path::Path, sync::Arc};

use beehive::{BoxFuture, Context, Inbox, Module, ModuleError, compose};
use podlife::admission::Pressure;
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;
use wire::{Message, kind, operation};

use crate::{
    access::Access,
    api::{self, Answerer, Api, DevicePages, NodeApi},
    events::{EventType, Recorder},
    eviction::{Evictor, EvictorTools},
    images::ImageCollector,
    meta::MetaClient,
    node::{NodeAgent, NodeOnline, oom, tunables},
    pods::{self, Busy, Desk, News, SourceError, Tools},
    runtime::{RUNTIME_EVENT_QUEUE, Runtime},
    settings::Settings,
    shutdown::Shutdown,
    static_pods::StaticPods,
    volumes,
};

/// Name and group of the module.
pub const EDGED: &str = "edged";

/// Where the kernel shows its settings.
const PROC: &str = "/proc";

/// The node agent as a module of edgecore.
pub struct Edged {
    settings: Arc<Settings>,
    access: watch::Sender<Option<Arc<Access>>>,
    api: watch::Sender<Option<Answerer>>,
    devices: Option<DevicePages>,
}

impl Edged {
    /// A node agent with these settings; nothing starts before the module runs.
    pub fn new(settings: Settings) -> Self {
        let (access, api) = (watch::Sender::new(None), watch::Sender::new(None));
        Self { settings: Arc::new(settings), access, api, devices: None }
    }

    /// Its API answers questions about devices with this.
    #[must_use]
    pub fn with_devices(self, devices: Option<DevicePages>) -> Self {
        Self { devices, ..self }
    }

    /// What other modules may ask of the agent, as soon as it runs.
    pub fn access(&self) -> watch::Receiver<Option<Arc<Access>>> {
        self.access.subscribe()
    }

    /// The node's HTTP API without a port, as long as the agent runs.
    pub fn node_api(&self) -> NodeApi {
        NodeApi::new(self.api.subscribe())
    }

    async fn serve(&self, context: Context, inbox: &mut Inbox) -> Result<(), ModuleError> {
        // Parts end with this run of the module, also when it fails and is started again.
        let stopping = context.token().child_token();
        if let Some(machine) = self.settings.machine {
            tunables::set_oom_score(Path::new(PROC), machine.oom_score);
            tunables::apply(Path::new(PROC), machine.protect_kernel)?;
        }
        if let Err(error) = volumes::share(&self.settings.root_dir) {
            tracing::warn!(directory = %self.settings.root_dir.display(), %error, "mounts of pods (CSI drivers, mountPropagation) will not be seen outside of them");
        }
        let _cancel = stopping.clone().drop_guard();
        let answers = context.clone();
        let meta = MetaClient::new(context);
        let listener = api::listen(&self.settings).await;
        let mut settings = Settings::clone(&self.settings);
        if let Some(address) = listener.as_ref().and_then(|listener| listener.local_addr().ok()) {
            settings.read_only_port = address.port();
        }
        let settings = Arc::new(settings);
        let (recorder, mut events) = Recorder::new(&settings);
        let (events_meta, stop_events) = (meta.clone(), stopping.clone());
        let runtime = Arc::new(Runtime::connect(Arc::clone(&settings), meta.clone(), recorder.clone()));
        let probe_counters = Arc::default();
        let (pressure, pressure_watch) = watch::channel(Pressure::default());
        let tools = Tools {
            settings: Arc::clone(&settings),
            runtime: Arc::clone(&runtime),
            recorder: recorder.clone(),
            meta: meta.clone(),
            pressure: pressure_watch.clone(),
            busy: Busy::default(),
            probe_counters: Arc::clone(&probe_counters),
        };
        let (desk, desk_task) = pods::desk(tools);
        let parts_of_access = (Arc::clone(&settings), Arc::clone(&runtime), desk.clone(), probe_counters);
        let access = Access::new(parts_of_access, stopping.clone());
        self.access.send_replace(Some(Arc::clone(&access)));
        let stats = access.stats().clone();
        let images = ImageCollector::new(Arc::clone(&settings), Arc::clone(&runtime), stats.clone(), recorder.clone());
        let images = Arc::new(images);
        let evictor = Evictor::new(EvictorTools {
            settings: Arc::clone(&settings),
            stats,
            desk: desk.clone(),
            runtime: Arc::clone(&runtime),
            images: Arc::clone(&images),
            recorder: recorder.clone(),
            pressure: pressure.clone(),
        });
        let mut parts = JoinSet::new();
        if let Some(shutdown) = settings.shutdown.clone() {
            let shutdown = Shutdown {
                settings: shutdown,
                desk: desk.clone(),
                runtime: Arc::clone(&runtime),
                recorder: recorder.clone(),
                pressure,
            };
            parts.spawn(shutdown.run(stopping.clone()));
        }
        let statics = StaticPods::new(Arc::clone(&settings), desk.clone());
        let node = NodeAgent::new(settings, meta, Arc::clone(&runtime), recorder.clone(), pressure_watch);
        let online = node.online();
        parts.spawn(async move { events.run(&events_meta, &stop_events).await });
        parts.spawn(oom::watch(recorder.clone(), stopping.clone()));
        parts.spawn(images.run(stopping.clone()));
        parts.spawn(evictor.run(stopping.clone()));
        parts.spawn(node.run(stopping.clone()));
        parts.spawn(runtime.devices().clone().run(stopping.clone()));
        parts.spawn(desk_task.run(stopping.clone()));
        parts.spawn(statics.run(stopping.clone()));
        let logs = Arc::clone(&runtime);
        let stop_logs = stopping.clone();
        parts.spawn(async move { logs.rotate_logs(stop_logs).await });
        parts.spawn(Arc::clone(&access).run());
        let api = Arc::new(Api::new(Arc::clone(&access), self.devices.clone()));
        let _answering = Answering::begin(&self.api, &api);
        parts.spawn(api.serve(listener));
        parts.spawn(pass_runtime_events(Arc::clone(&runtime), desk.clone(), access, stopping.clone()));
        loop {
            tokio::select! {
                () = stopping.cancelled() => break,
                message = inbox.recv() => match message {
                    Some(message) if operation::VOLUME.contains(&message.route.operation.as_str()) => {
                        refuse_volume(&answers, &message);
                    }
                    Some(message) => hand_over(&desk, &online, &recorder, &message).await,
                    None => break,
                },
                ended = parts.join_next() => {
                    let cause = ended.and_then(Result::err).map_or_else(String::new, |error| format!(": {error}"));
                    return Err(format!("a part of edged ended{cause}").into());
                }
            }
        }
        stopping.cancel();
        while parts.join_next().await.is_some() {}
        Ok(())
    }
}

/// While it lives, the API answers other modules.
struct Answering<'a>(&'a watch::Sender<Option<Answerer>>);

impl<'a> Answering<'a> {
    fn begin(place: &'a watch::Sender<Option<Answerer>>, api: &Arc<Api>) -> Self {
        let api = Arc::clone(api);
        let answerer: Answerer = Arc::new(move |request| {
            let api = Arc::clone(&api);
            Box::pin(async move { api.answer_authorised(request).await })
        });
        place.send_replace(Some(answerer));
        Self(place)
    }
}

impl Drop for Answering<'_> {
    fn drop(&mut self) {
        self.0.send_replace(None);
    }
}

impl Module for Edged {
    fn name(&self) -> &'static str {
        EDGED
    }

    fn group(&self) -> &'static str {
        EDGED
    }

    fn run<'a>(&'a mut self, context: Context, inbox: &'a mut Inbox) -> BoxFuture<'a, Result<(), ModuleError>> {
        Box::pin(self.serve(context, inbox))
    }
}

async fn hand_over(desk: &Desk, online: &NodeOnline, recorder: &Recorder, message: &Message) {
    if message.route.resource == kind::NODE_CONNECTION {
        if message.content.payload().as_ref() == b"cloud_connected" {
            online.tell();
            desk.tell(News::Online).await;
        }
        return;
    }
    match pods::read_change(message) {
        Ok(change) => desk.tell(News::Change(change)).await,
        Err(error) => {
            let cause = std::error::Error::source(&error).map(ToString::to_string);
            tracing::warn!(resource = message.route.resource, error = %error, cause, "message left out");
            if let SourceError::Pod { reason, about: Some(pod), .. } = error {
                let text = format!("the pod is not started, since this field cannot be read: {reason}");
                recorder.pod(&pod, EventType::Warning, "InvalidPod", text);
            }
        }
    }
}

/// The cloud's CSI driver waits for an answer; say at once that there will be none.
fn refuse_volume(context: &Context, request: &Message) {
    let text = format!("{} is not supported: this agent has no CSI driver", request.route.operation);
    tracing::warn!(operation = request.route.operation, "CSI request refused");
    context.respond(compose::error(request, &text));
}

async fn pass_runtime_events(runtime: Arc<Runtime>, desk: Desk, access: Arc<Access>, stopping: CancellationToken) {
    let (sender, mut receiver) = mpsc::channel(RUNTIME_EVENT_QUEUE);
    let pass = async {
        while let Some(event) = receiver.recv().await {
            access.runtime_changed(&event);
            desk.tell(News::Runtime(event)).await;
        }
    };
    tokio::join!(runtime.events(sender, stopping), pass);
}
