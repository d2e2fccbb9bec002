//! A MetaManager that answers from a table, and what else the tests of this folder share.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use beehive::{Context, compose};
use edged::events::Recorder;
use edged::meta::MetaClient;
use edged::runtime::Runtime;
use edged::settings::Settings;
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use wire::{Content, Message};

/// Deadline of everything that is waited for.
pub const LIMIT: Duration = Duration::from_secs(20);

/// How a request is answered.
#[derive(Clone)]
pub enum Answer {
    /// This content.
    Content(Value),
    /// An error message in words, as when the cloud is out of reach.
    Error(String),
}

type Table = HashMap<(String, String), Answer>;

/// Answers requests and remembers them.
#[derive(Clone)]
pub struct StubMeta {
    table: Arc<Mutex<Table>>,
    requests: Arc<Mutex<Vec<Message>>>,
    context: Context,
}

impl StubMeta {
    /// A bus with only this module on it.
    pub fn start() -> (Self, MetaClient) {
        let (context, mut inboxes) = Context::new(&[("metamanager", "meta")], CancellationToken::new());
        let stub = Self { table: Arc::default(), requests: Arc::default(), context: context.clone() };
        let mut inbox = inboxes.remove(0);
        let serving = stub.clone();
        #[allow(clippy::disallowed_methods, reason = "ends with the test")]
        tokio::spawn(async move {
            while let Some(message) = inbox.recv().await {
                serving.requests.lock().unwrap().push(message.clone());
                serving.answer(&message);
            }
        });
        (stub, MetaClient::new(context))
    }

    fn answer(&self, message: &Message) {
        let key = (message.route.operation.clone(), message.route.resource.clone());
        let answer = self.table.lock().unwrap().get(&key).cloned();
        let answer = answer.unwrap_or(Answer::Content(json!([])));
        self.context.respond(match answer {
            Answer::Content(value) => compose::response(message, Content::json(&value).unwrap()),
            Answer::Error(text) => compose::error(message, &text),
        });
    }

    /// Answers requests of this operation about this resource.
    pub fn set(&self, operation: &str, resource: &str, answer: Answer) {
        self.table.lock().unwrap().insert((operation.into(), resource.into()), answer);
    }

    /// An object of the local store.
    pub fn store(&self, resource: &str, object: Value) {
        self.set("query", resource, Answer::Content(json!([object.to_string()])));
    }

    /// Contents of the requests of this operation about resources that contain `part`.
    pub fn requests(&self, operation: &str, part: &str) -> Vec<Value> {
        let requests = self.requests.lock().unwrap();
        let fitting = requests.iter().filter(|m| m.route.operation == operation && m.route.resource.contains(part));
        fitting.map(|m| m.content.parse().unwrap()).collect()
    }

    /// Waits until so many such requests have come.
    pub async fn wait_for(&self, operation: &str, part: &str, count: usize) -> Vec<Value> {
        let waiting = async {
            loop {
                let found = self.requests(operation, part);
                if found.len() >= count {
                    return found;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(LIMIT, waiting).await.unwrap_or_else(|_| panic!("no {count} × {operation} {part}"))
    }
}

/// A runtime at this endpoint with its files below `dir`; events reach the stub.
pub fn runtime(dir: &Path, endpoint: &str, meta: &MetaClient) -> (Arc<Runtime>, Arc<Settings>) {
    let mut settings = Settings::new("n1");
    settings.runtime_endpoint = endpoint.to_owned();
    settings.root_dir = dir.join("kubelet");
    settings.pod_logs_dir = dir.join("log/pods");
    settings.cluster_dns = vec!["169.254.96.16".into()];
    settings.container_log_max_size = 20;
    // What a runtime in memory does not use is not made on the machine.
    settings.cgroups_per_qos = !endpoint.ends_with("/cri.sock");
    settings.node_ip = "192.0.2.2".parse().ok();
    settings.kubernetes_service = Some(("169.254.30.10".into(), 10550));
    let settings = Arc::new(settings);
    let (recorder, mut sender) = Recorder::new(&settings);
    let events_meta = meta.clone();
    #[allow(clippy::disallowed_methods, reason = "ends with the test")]
    tokio::spawn(async move { sender.run(&events_meta, &CancellationToken::new()).await });
    (Arc::new(Runtime::connect(settings.clone(), meta.clone(), recorder)), settings)
}

/// A pod `web` in namespace `default`.
pub fn pod(spec: Value) -> Pod {
    let uid = uid();
    serde_json::from_value(json!({
        "metadata": {"name": "web", "namespace": "default", "uid": uid, "labels": {"app": "web"}}, "spec": spec,
    }))
    .unwrap()
}

/// Unique on this machine, as the names of cgroups must be.
fn uid() -> String {
    beehive::compose::id()
}
