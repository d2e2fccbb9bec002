//! Custom resources in several versions: without conversion, and with a webhook that may be whatever it likes.

#![allow(clippy::panic, clippy::expect_used)]

mod support;

use std::sync::{Arc, Mutex};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::Response;
use http_body_util::{BodyExt, Full};
use kubeapi::api::{ListOptions, ResourceRef, WatchKind};
use kubeapi::{PatchType, User, WriteOptions};
use link::ca::CertificateAuthority;
use link::http_server::{HttpServer, MAX_STREAMS};
use link::tls::{Certificate, ClientAuth};
use serde_json::{Value, json};
use support::World;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// v1 has `spec.size`, v2, which is kept, has `spec.length`.
fn definition(conversion: &Value) -> Value {
    let version = |name: &str, field: &str, kept: bool| {
        let spec = json!({"type": "object", "properties": {field: {"type": "integer"}}});
        let schema = json!({"type": "object", "properties": {"spec": spec}});
        json!({"name": name, "served": true, "storage": kept, "schema": {"openAPIV3Schema": schema}})
    };
    json!({"metadata": {"name": "ropes.example.org"}, "spec": {
        "group": "example.org", "scope": "Namespaced", "names": {"kind": "Rope", "plural": "ropes"}, "conversion": conversion,
        // The version that is kept comes last: it is not taken because of its place.
        "versions": [version("v1", "size", false), version("v2", "length", true)],
    }})
}

fn place(world: &World, version: &str, name: &str) -> ResourceRef {
    let resource = world.api().catalog().find("example.org", version, "ropes").expect("served");
    ResourceRef { resource, namespace: "default".to_owned(), name: name.to_owned(), subresource: String::new() }
}

/// What a webhook answers, of the request.
type Answer = Box<dyn Fn(&Value) -> Value + Send>;

/// A webhook on loopback.
struct Webhook {
    conversion: Value,
    answer: Arc<Mutex<Answer>>,
    asked: Arc<Mutex<usize>>,
    stop: CancellationToken,
    _tasks: JoinSet<()>,
}

impl Drop for Webhook {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Webhook {
    async fn start() -> Self {
        let ca = CertificateAuthority::generate().expect("a CA");
        let issued = ca.issue_server("webhook", "test", &["127.0.0.1".to_owned()]).expect("a certificate");
        let own = Certificate { certificate: issued.certificate, key: issued.key };
        let tls = link::tls::server(&own, ClientAuth::Requested, &[b"http/1.1"]).expect("TLS");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("port");
        let address = listener.local_addr().expect("address");
        let server = HttpServer {
            listener,
            tls: Some(watch::Sender::new(tls).subscribe()),
            max_connections: 16,
            max_streams: MAX_STREAMS,
        };
        let answer: Arc<Mutex<Answer>> = Arc::new(Mutex::new(Box::new(good)));
        let asked = Arc::new(Mutex::new(0));
        let (stop, mut tasks) = (CancellationToken::new(), JoinSet::new());
        let (answers, counts) = (answer.clone(), asked.clone());
        let serving = server.serve(
            move |request, _| {
                let (answers, counts) = (answers.clone(), counts.clone());
                async move {
                    let body = request.into_body().collect().await.expect("body").to_bytes();
                    let review: Value = serde_json::from_slice(&body).expect("JSON");
                    *counts.lock().expect("lock") += 1;
                    let answer = answers.lock().expect("lock")(&review["request"]);
                    let text = json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "ConversionReview", "response": answer}).to_string();
                    Response::new(Full::new(Bytes::from(text)).map_err(|never| match never {}).boxed())
                }
            },
            stop.clone(),
        );
        tasks.spawn(serving);
        let bundle = STANDARD.encode(link::files::to_pem("CERTIFICATE", ca.certificate()));
        let config = json!({"url": format!("https://{address}/ropes"), "caBundle": bundle});
        let webhook = json!({"conversionReviewVersions": ["v1"], "clientConfig": config});
        Self { conversion: json!({"strategy": "Webhook", "webhook": webhook}), answer, asked, stop, _tasks: tasks }
    }

    fn answers(&self, answer: impl Fn(&Value) -> Value + Send + 'static) {
        *self.answer.lock().expect("lock") = Box::new(answer);
    }

    fn asked(&self) -> usize {
        *self.asked.lock().expect("lock")
    }
}

/// `size` is `length`.
fn good(request: &Value) -> Value {
    let wanted = &request["desiredAPIVersion"];
    let field = if wanted == "example.org/v1" { ["length", "size"] } else { ["size", "length"] };
    let convert = |object: &Value| {
        let mut object = object.clone();
        object["apiVersion"] = wanted.clone();
        object["spec"] = json!({field[1]: object["spec"][field[0]]});
        object
    };
    let objects: Vec<Value> = request["objects"].as_array().expect("objects").iter().map(convert).collect();
    json!({"uid": request["uid"], "result": {"status": "Success"}, "convertedObjects": objects})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_conversion_what_the_other_schema_does_not_know_is_dropped() {
    let world = World::start().await;
    world.create("customresourcedefinitions", "", definition(&Value::Null)).await;
    let (api, user, options) = (world.api(), User::system("test"), WriteOptions::default());
    let (v1, v2) = (place(&world, "v1", ""), place(&world, "v2", ""));
    let new = json!({"metadata": {"name": "new"}, "spec": {"length": 1}});
    let new = api.create(&user, &v2, new, &options).await.expect("created");
    assert_eq!(new["spec"]["length"], 1);
    let old = json!({"metadata": {"name": "old"}, "spec": {"size": 1}});
    let old = api.create(&user, &v1, old, &options).await.expect("created");
    assert_eq!((&old["apiVersion"], &old["spec"]), (&json!("example.org/v1"), &json!({})), "as it can be read");
    for (version, name, spec) in
        [("v1", "new", json!({})), ("v2", "new", json!({"length": 1})), ("v2", "old", json!({}))]
    {
        let read = api.read(&place(&world, version, name)).await.expect("read");
        assert_eq!((&read["apiVersion"], &read["spec"]), (&json!(format!("example.org/{version}")), &spec));
    }
    assert_eq!(api.get(&place(&world, "v1", "old")).expect("kept")["apiVersion"], "example.org/v2");
    let kept = api.reference("example.org", "ropes", "default", "new").expect("served");
    assert_eq!(kept.resource.version, "v2");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_webhook_converts_what_is_asked_for_and_no_more() {
    let world = World::start().await;
    let webhook = Webhook::start().await;
    world.create("customresourcedefinitions", "", definition(&webhook.conversion)).await;
    let (api, user, options) = (world.api(), User::system("test"), WriteOptions::default());
    let (old, new) = (|name: &str| place(&world, "v1", name), |name: &str| place(&world, "v2", name));
    api.create(&user, &new(""), json!({"metadata": {"name": "a"}, "spec": {"length": 1}}), &options)
        .await
        .expect("created");
    api.patch(&new("a"), &json!({"spec": {"length": 2}}), PatchType::Merge, &options).await.expect("patched");
    let listed = api.list(&new(""), &ListOptions::default()).expect("listed");
    api.convert(&new(""), listed.items).await.expect("nothing to do");
    assert_eq!(webhook.asked(), 0, "the version that is kept costs nothing");

    let created = api.create(&user, &old(""), json!({"metadata": {"name": "b"}, "spec": {"size": 5}}), &options).await;
    assert_eq!(created.expect("created")["spec"], json!({"size": 5}));
    let patched =
        api.patch(&old("a"), &json!({"spec": {"size": 3}}), PatchType::Merge, &options).await.expect("patched");
    assert_eq!(patched["metadata"]["generation"], 3);
    assert_eq!(api.read(&new("a")).await.expect("read")["spec"], json!({"length": 3}));
    assert_eq!(api.get(&old("b")).expect("kept")["spec"], json!({"length": 5}));
    let before = webhook.asked();
    let listed = api.list(&old(""), &ListOptions::default()).expect("listed");
    let sizes: Vec<Value> = api
        .convert(&old(""), listed.items)
        .await
        .expect("converted")
        .into_iter()
        .map(|o| o["spec"]["size"].clone())
        .collect();
    assert_eq!((sizes, webhook.asked() - before), (vec![json!(3), json!(5)], 1), "one question for a list");

    let mut watch = api.watch(&old(""), &ListOptions::default(), Some(api.revision())).expect("a watch");
    let (_, gone) = api.delete(&old("b"), &Default::default()).await.expect("deleted");
    assert!(gone);
    let event = watch.next().await.expect("event");
    assert_eq!((event.kind, &event.object().expect("object")["spec"]), (WatchKind::Deleted, &json!({"length": 5})));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_webhook_makes_of_an_object_must_fit_the_schema_to_be_kept() {
    let world = World::start().await;
    let webhook = Webhook::start().await;
    world.create("customresourcedefinitions", "", definition(&webhook.conversion)).await;
    let (api, user, options) = (world.api(), User::system("test"), WriteOptions::default());
    let (old, new) = (|name: &str| place(&world, "v1", name), |name: &str| place(&world, "v2", name));
    let rope = |name: &str| json!({"metadata": {"name": name, "finalizers": ["x/y"]}, "spec": {"size": 1}});
    api.create(&user, &old(""), rope("a"), &options).await.expect("created");
    webhook.answers(|request| {
        let mut answer = good(request);
        if request["desiredAPIVersion"] == "example.org/v2" {
            answer["convertedObjects"][0]["spec"]["length"] = json!("long");
        }
        answer
    });
    let error = api.create(&user, &old(""), rope("b"), &options).await.expect_err("no integer");
    assert!(error.code == 422 && error.message.contains("spec.length"), "{}", error.message);
    assert!(api.get(&new("b")).is_err(), "nothing was stored");
    let patch = json!({"spec": {"size": 2}});
    let error = api.patch(&old("a"), &patch, PatchType::Merge, &options).await.expect_err("no integer");
    assert!(error.code == 422 && error.message.contains("spec.length"), "{}", error.message);
    assert_eq!(api.get(&new("a")).expect("kept")["spec"], json!({"length": 1}));
    api.delete(&old("a"), &Default::default()).await.expect("it may go");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_generation_counts_changes_of_what_is_kept() {
    let world = World::start().await;
    let webhook = Webhook::start().await;
    world.create("customresourcedefinitions", "", definition(&webhook.conversion)).await;
    let (api, user, options) = (world.api(), User::system("test"), WriteOptions::default());
    let (old, new) = (place(&world, "v1", "a"), place(&world, "v2", "a"));
    let rope = json!({"metadata": {"name": "a"}, "spec": {"length": 4}});
    api.create(&user, &place(&world, "v2", ""), rope, &options).await.expect("created");
    // v1 has the length as a label.
    webhook.answers(|request| {
        let mut answer = good(request);
        let asked = &request["objects"][0];
        let made = &mut answer["convertedObjects"][0];
        if request["desiredAPIVersion"] == "example.org/v1" {
            made["metadata"]["labels"]["length"] = json!(asked["spec"]["length"].to_string());
            made["spec"] = json!({});
        } else {
            let length = asked["metadata"]["labels"]["length"].as_str().and_then(|text| text.parse::<u32>().ok());
            made["spec"] = json!({"length": length});
        }
        answer
    });
    for (labels, generation) in [(json!({"other": "x"}), 1), (json!({"length": "5"}), 2), (json!({"length": "5"}), 2)] {
        let patch = json!({"metadata": {"labels": labels}});
        let patched = api.patch(&old, &patch, PatchType::Merge, &options).await.expect("patched");
        let kept = api.get(&new).expect("kept");
        assert_eq!(
            (&patched["metadata"]["generation"], &kept["metadata"]["generation"]),
            (&json!(generation), &json!(generation)),
            "{labels}"
        );
    }
    assert_eq!(api.get(&new).expect("kept")["spec"], json!({"length": 5}));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_webhook_harms_nothing_but_its_own_version() {
    let world = World::start().await;
    let webhook = Webhook::start().await;
    world.create("customresourcedefinitions", "", definition(&webhook.conversion)).await;
    let (api, user, options) = (world.api(), User::system("test"), WriteOptions::default());
    let (old, new) = (|name: &str| place(&world, "v1", name), |name: &str| place(&world, "v2", name));
    api.create(
        &user,
        &new(""),
        json!({"metadata": {"name": "a", "finalizers": ["x/y"]}, "spec": {"length": 1}}),
        &options,
    )
    .await
    .expect("created");
    let changed = |path: &'static str, value: Value| {
        move |request: &Value| {
            let mut answer = good(request);
            *answer.pointer_mut(path).expect("path") = value.clone();
            answer
        }
    };
    let bad: Vec<(Answer, &str)> = vec![
        (Box::new(changed("/uid", json!("other"))), "another request"),
        (Box::new(changed("/result", json!({"status": "Failure", "message": "too short a rope"}))), "too short a rope"),
        (Box::new(changed("/result", Value::Null)), "no reason"),
        (Box::new(changed("/convertedObjects", json!([]))), "as many objects"),
        (Box::new(changed("/convertedObjects", json!([7]))), "apiVersion"),
        (Box::new(changed("/convertedObjects/0/apiVersion", json!("example.org/v2"))), "apiVersion"),
        (Box::new(changed("/convertedObjects/0/metadata/name", json!("b"))), "metadata.name"),
        (Box::new(|_| json!("x".repeat(33 << 20))), "too long"),
    ];
    for (answer, text) in bad {
        webhook.answers(answer);
        let error = api.read(&old("a")).await.expect_err(text);
        assert!(error.code == 500 && error.message.contains(text), "{text}: {}", error.message);
        assert!(
            error.message.contains("CustomResourceDefinition ropes.example.org; example.org/v2 needs no conversion"),
            "{}",
            error.message
        );
        let created =
            api.create(&user, &old(""), json!({"metadata": {"name": "c"}, "spec": {"size": 1}}), &options).await;
        assert!(created.is_err() && api.get(&new("c")).is_err(), "nothing is stored: {text}");
    }
    // It may not take finalizers away, nor say what the schema does not know.
    webhook.answers(|request| {
        let mut answer = good(request);
        let object = &mut answer["convertedObjects"][0];
        object["metadata"]["finalizers"] = json!([]);
        object["spec"]["colour"] = json!("red");
        answer
    });
    let read = api.read(&old("a")).await.expect("read");
    assert_eq!((&read["metadata"]["finalizers"], &read["spec"]), (&json!(["x/y"]), &json!({"size": 1})));
    assert_eq!(api.read(&new("a")).await.expect("read")["spec"], json!({"length": 1}));

    let mut other = webhook.conversion.clone();
    other["webhook"]["clientConfig"]["caBundle"] = json!(
        STANDARD
            .encode(link::files::to_pem("CERTIFICATE", CertificateAuthority::generate().expect("a CA").certificate()))
    );
    let crd =
        api.reference("apiextensions.k8s.io", "customresourcedefinitions", "", "ropes.example.org").expect("served");
    let patch = json!({"spec": {"conversion": other}});
    api.patch(&crd, &patch, PatchType::Merge, &options).await.expect("patched");
    let error = api.read(&old("a")).await.expect_err("another CA");
    assert!(error.message.contains("certificate is not taken"), "{}", error.message);
}
