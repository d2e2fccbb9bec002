//! A MetaManager with a cloud behind it, in memory: stores pods, answers edged, can lose the cloud.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use beehive::{BoxFuture, Context, Inbox, Module, ModuleError, compose};
use serde_json::{Map, Value, json};
use tokio::sync::mpsc;
use wire::{Content, EdgeResource, Message, group, operation, source};

/// Messages from the test to edged.
const PUSHES: usize = 64;

/// Handle of a test to the store and the cloud.
#[derive(Clone)]
pub struct Cloud {
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    /// Pods by `namespace/name`, as both the API and the local store have them.
    pods: BTreeMap<String, Value>,
    others: BTreeMap<String, Value>,
    offline: bool,
    /// The local store does not answer lists.
    list_fails: bool,
    /// How long tokens live, and how old they are when they are issued, in seconds; none are issued otherwise.
    tokens: Option<(i64, i64)>,
    version: u64,
    log: Vec<(String, String, Value)>,
    push: Option<mpsc::Sender<Message>>,
}

impl Cloud {
    pub fn new() -> Self {
        Self { state: Arc::default() }
    }

    /// The module that stands in for MetaManager.
    pub fn module(&self) -> FakeMetaManager {
        FakeMetaManager { cloud: self.clone() }
    }

    pub fn set_offline(&self, offline: bool) {
        self.state().offline = offline;
    }

    /// Issues ServiceAccount tokens from now on, which live so many seconds and are so old when they are issued.
    pub fn issue_tokens(&self, lifetime: i64, age: i64) {
        self.state().tokens = Some((lifetime, age));
    }

    /// Reasons and texts of the events about a pod.
    pub fn event_texts(&self, name: &str) -> Vec<String> {
        let log = self.log();
        let events = log.iter().filter(|(_, resource, _)| resource.contains("/event/"));
        let events = events.map(|(_, _, content)| content.get("event").unwrap_or(content));
        let events = events.filter(|event| event["involvedObject"]["name"] == name);
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        events.map(|event| format!("{}: {}", text(&event["reason"]), text(&event["message"]))).collect()
    }

    pub fn fail_lists(&self, fail: bool) {
        self.state().list_fails = fail;
    }

    /// Stores a pod without telling edged, as if it had arrived in an earlier life of edged.
    pub fn store(&self, mut pod: Value) -> String {
        let mut state = self.state();
        state.version += 1;
        pod["metadata"]["resourceVersion"] = json!(state.version.to_string());
        let uid = pod["metadata"]["uid"].as_str().unwrap().to_owned();
        state.pods.insert(key(&pod), pod);
        uid
    }

    /// Creates a pod.
    pub async fn create(&self, pod: Value) -> String {
        let key = key(&pod);
        let uid = self.store(pod);
        self.push_pod(&key, operation::INSERT).await;
        uid
    }

    /// Changes a pod.
    pub async fn change(&self, name: &str, change: impl FnOnce(&mut Value)) {
        let key = format!("default/{name}");
        let mut pod = self.pod(name).unwrap();
        change(&mut pod);
        self.store(pod);
        self.push_pod(&key, operation::UPDATE).await;
    }

    /// `kubectl delete`: sets the deletion timestamp.
    pub async fn delete(&self, name: &str, grace: i64) {
        self.change(name, |pod| {
            pod["metadata"]["deletionTimestamp"] = json!("2026-11-24T12:00:00Z");
            pod["metadata"]["deletionGracePeriodSeconds"] = json!(grace);
        })
        .await;
    }

    /// The object is gone at once (force delete).
    pub async fn force_delete(&self, name: &str) {
        let pod = self.state().pods.remove(&format!("default/{name}")).unwrap();
        self.send(operation::DELETE, &format!("default/pod/{name}"), &json!({"metadata": pod["metadata"]})).await;
    }

    /// Removes a pod from the store without telling edged.
    pub fn forget(&self, name: &str) {
        self.state().pods.remove(&format!("default/{name}"));
    }

    pub async fn create_other(&self, resource: &str, object: Value) {
        self.state().others.insert(resource.to_owned(), object.clone());
        self.send(operation::INSERT, resource, &object).await;
    }

    /// A message as it is.
    pub async fn push_raw(&self, operation: &str, resource: &str, content: Value) {
        self.send(operation, resource, &content).await;
    }

    pub async fn push_again(&self, name: &str) {
        self.push_pod(&format!("default/{name}"), operation::UPDATE).await;
    }

    pub fn pod(&self, name: &str) -> Option<Value> {
        self.state().pods.get(&format!("default/{name}")).cloned()
    }

    /// Requests that edged made: operation, resource, content.
    pub fn log(&self) -> Vec<(String, String, Value)> {
        self.state().log.clone()
    }

    /// Patches of a pod's status, in order of arrival while online.
    pub fn patches(&self, name: &str) -> Vec<Value> {
        let resource = format!("default/podpatch/{name}");
        let log = self.log();
        let texts = log.iter().filter(|(_, r, _)| *r == resource).filter_map(|(_, _, content)| content.as_str());
        texts.map(|text| serde_json::from_str(text).unwrap()).collect()
    }

    /// Reasons of the events about a pod.
    pub fn events(&self, name: &str) -> Vec<String> {
        let log = self.log();
        let events = log.iter().filter(|(_, resource, _)| resource.contains("/event/"));
        let events = events.map(|(_, _, content)| content.get("event").unwrap_or(content));
        let events = events.filter(|event| event["involvedObject"]["name"] == name);
        events.map(|event| event["reason"].as_str().unwrap_or_default().to_owned()).collect()
    }

    /// The events about a pod, each as it was told last.
    pub fn event_objects(&self, name: &str) -> Vec<Value> {
        let mut found: Vec<Value> = Vec::new();
        for (_, resource, content) in self.log() {
            let event = content.get("event").unwrap_or(&content);
            if !resource.contains("/event/") || event["involvedObject"]["name"] != name {
                continue;
            }
            match found.iter_mut().find(|old| old["metadata"]["name"] == event["metadata"]["name"]) {
                Some(old) => *old = event.clone(),
                None => found.push(event.clone()),
            }
        }
        found
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn push_pod(&self, key: &str, operation: &str) {
        let pod = self.state().pods.get(key).cloned();
        if let Some(pod) = pod {
            let (namespace, name) = key.split_once('/').unwrap();
            self.send(operation, &format!("{namespace}/pod/{name}"), &pod).await;
        }
    }

    async fn send(&self, operation: &str, resource: &str, object: &Value) {
        let push = self.state().push.clone();
        let content = Content::json(object).unwrap();
        let message = compose::message(source::EDGE_CONTROLLER, group::RESOURCE, operation, resource, content);
        if let Some(push) = push {
            let _ = push.send(message).await;
        }
    }

    /// The answer to a request, and what is pushed to edged after it.
    fn answer(&self, request: &Message) -> (Option<Content>, Option<Message>) {
        let mut state = self.state();
        let route = &request.route;
        let content: Value = serde_json::from_slice(request.content.raw()).unwrap();
        // A pod may name what no object is called.
        let Ok(resource) = EdgeResource::parse(&route.resource) else {
            return (Some(refusal(400, "BadRequest", &format!("{} is no resource", route.resource))), None);
        };
        let key = format!("{}/{}", resource.namespace, resource.name.clone().unwrap_or_default());
        let offline = state.offline;
        if resource.kind == "pod" && route.operation == operation::QUERY {
            if state.list_fails {
                return (Some(Content::text("the store is closed")), None);
            }
            let rows: Vec<String> = state.pods.values().map(Value::to_string).collect();
            return (Some(Content::json(&rows).unwrap()), None);
        }
        if offline && resource.kind != "configmap" {
            return (None, None);
        }
        state.log.push((route.operation.clone(), route.resource.clone(), content.clone()));
        match (resource.kind.as_str(), route.operation.as_str()) {
            ("podpatch", operation::PATCH) => {
                let patch: Value = serde_json::from_str(content.as_str().unwrap()).unwrap();
                state.version += 1;
                let version = state.version.to_string();
                let Some(pod) = state.pods.get_mut(&key) else { return (Some(not_found(&key)), None) };
                if pod["metadata"]["uid"] != patch["metadata"]["uid"] {
                    return (Some(refusal(409, "Conflict", "Precondition failed: UID in precondition")), None);
                }
                merge(pod.as_object_mut().unwrap().entry("status").or_insert(json!({})), &patch["status"]);
                pod["metadata"]["resourceVersion"] = json!(version);
                let push = compose::message(
                    source::EDGE_CONTROLLER,
                    group::RESOURCE,
                    operation::UPDATE,
                    &route.resource.replace("podpatch", "pod"),
                    Content::json(pod).unwrap(),
                );
                (Some(Content::json(&json!({"Object": pod, "Err": null})).unwrap()), Some(push))
            }
            ("pod", operation::DELETE) => match state.pods.get(&key) {
                // Without a precondition whatever has the name goes.
                Some(pod) if [&Value::Null, &pod["metadata"]["uid"]].contains(&&content["preconditions"]["uid"]) => {
                    let pod = state.pods.remove(&key).unwrap();
                    let push = compose::message(
                        source::EDGE_CONTROLLER,
                        group::RESOURCE,
                        operation::DELETE,
                        &route.resource,
                        Content::json(&pod).unwrap(),
                    );
                    (Some(Content::ok()), Some(push))
                }
                _ => (Some(not_found(&key)), None),
            },
            ("pod", operation::INSERT) => {
                if state.pods.contains_key(&key) {
                    return (Some(refusal(409, "AlreadyExists", &format!("pods {key:?} already exists"))), None);
                }
                state.version += 1;
                let mut pod = content;
                pod["metadata"]["uid"] = json!(format!("mirror-{}", state.version));
                pod["metadata"]["resourceVersion"] = json!(state.version.to_string());
                state.pods.insert(key, pod.clone());
                let content = Content::json(&pod).unwrap();
                let push = compose::message(
                    source::EDGE_CONTROLLER,
                    group::RESOURCE,
                    operation::INSERT,
                    &route.resource,
                    content,
                );
                (Some(Content::json(&json!({"Object": pod, "Err": null})).unwrap()), Some(push))
            }
            ("event", _) => (Some(Content::null()), None),
            ("serviceaccounttoken", operation::QUERY) if state.tokens.is_some() => {
                state.version += 1;
                let token = token(&content, state.tokens.unwrap(), state.version);
                (Some(Content::json(&token).unwrap()), None)
            }
            (_, operation::QUERY) => match state.others.get(&route.resource) {
                Some(object) => (Some(Content::json(object).unwrap()), None),
                None => (Some(not_found(&key)), None),
            },
            _ => (Some(Content::json(&json!({"Object": content, "Err": null})).unwrap()), None),
        }
    }
}

fn key(pod: &Value) -> String {
    format!("{}/{}", pod["metadata"]["namespace"].as_str().unwrap(), pod["metadata"]["name"].as_str().unwrap())
}

/// The answer to a TokenRequest: a token that nobody has signed.
fn token(request: &Value, (lifetime, age): (i64, i64), number: u64) -> Value {
    use base64::Engine as _;
    let issued = jiff::Timestamp::now().as_second() - age;
    let spec = &request["spec"];
    let claims = json!({"iat": issued, "exp": issued + lifetime, "aud": spec["audiences"], "jti": number.to_string(),
        "kubernetes.io": {"pod": {"name": spec["boundObjectRef"]["name"], "uid": spec["boundObjectRef"]["uid"]}}});
    let claims = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(claims.to_string());
    let expires = jiff::Timestamp::from_second(issued + lifetime).unwrap().to_string();
    json!({"spec": spec, "status": {"token": format!("h.{claims}.s"), "expirationTimestamp": expires}})
}

fn not_found(key: &str) -> Content {
    refusal(404, "NotFound", &format!("{key} not found"))
}

fn refusal(code: u16, reason: &str, message: &str) -> Content {
    Content::json(&json!({"Object": null, "Err": {"ErrStatus": {"metadata": {}, "status": "Failure", "code": code,
        "reason": reason, "message": message}}}))
    .unwrap()
}

/// A strategic merge as far as pod statuses need it.
fn merge(target: &mut Value, patch: &Value) {
    let target = target.as_object_mut().unwrap();
    for (field, value) in patch.as_object().unwrap() {
        let key = match field.as_str() {
            "conditions" => "type",
            "podIPs" | "hostIPs" => "ip",
            _ => "",
        };
        if field.starts_with('$') {
            continue;
        } else if value.is_null() {
            target.remove(field);
        } else if !key.is_empty() {
            let list = target.entry(field).or_insert(json!([])).as_array_mut().unwrap();
            for item in value.as_array().unwrap() {
                if item["$patch"] == "delete" {
                    list.retain(|old| old[key] != item[key]);
                } else if let Some(old) = list.iter_mut().find(|old| old[key] == item[key]) {
                    merge(old, item);
                } else {
                    let fields: Map<_, _> = item
                        .as_object()
                        .unwrap()
                        .iter()
                        .filter(|(_, v)| !v.is_null())
                        .map(|(k, v)| (k.clone(), v.clone()))
                        .collect();
                    list.push(Value::Object(fields));
                }
            }
        } else {
            target.insert(field.clone(), value.clone());
        }
    }
}

/// See [`Cloud::module`].
pub struct FakeMetaManager {
    cloud: Cloud,
}

impl Module for FakeMetaManager {
    fn name(&self) -> &'static str {
        "metamanager"
    }

    fn group(&self) -> &'static str {
        "meta"
    }

    fn run<'a>(&'a mut self, context: Context, inbox: &'a mut Inbox) -> BoxFuture<'a, Result<(), ModuleError>> {
        Box::pin(async move {
            let (sender, mut pushes) = mpsc::channel(PUSHES);
            self.cloud.state().push = Some(sender);
            loop {
                tokio::select! {
                    () = context.stopping() => return Ok(()),
                    Some(push) = pushes.recv() => context.send("edged", push).await?,
                    request = inbox.recv() => {
                        let Some(request) = request else { return Ok(()) };
                        let (answer, push) = self.cloud.answer(&request);
                        let answer = match answer {
                            Some(content) => compose::response(&request, content),
                            None => compose::error(&request, "the cloud is out of reach"),
                        };
                        context.respond(answer);
                        if let Some(push) = push {
                            context.send("edged", push).await?;
                        }
                    }
                }
            }
        })
    }
}
