//! The API as clients see it: over TLS, with certificates and tokens, byte for byte.

#![allow(clippy::panic, clippy::expect_used)]

mod support;

use serde_json::{Value, json};
use support::World;
use support::client::Client;

const PATCH_MERGE: &str = "application/merge-patch+json";
const PODS: &str = "/api/v1/namespaces/default/pods";
const MAPS: &str = "/api/v1/namespaces/default/configmaps";

fn map(name: &str, value: &str) -> Value {
    json!({"metadata": {"name": name, "labels": {"app": value}}, "data": {"v": value}})
}

fn version(object: &Value) -> String {
    object["metadata"]["resourceVersion"].as_str().expect("a version").to_owned()
}

fn message(answer: &(u16, Value)) -> (u16, &str, &str) {
    (answer.0, answer.1["reason"].as_str().unwrap_or_default(), answer.1["message"].as_str().unwrap_or_default())
}

/// Pods can be created once their ServiceAccount is there.
async fn started() -> World {
    let world = World::start().await;
    world.eventually("the account is there", |w| w.get("serviceaccounts", "default", "default").is_some()).await;
    world
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_asked_first() {
    let world = World::start().await;
    let (admin, nobody) = (Client::admin(&world), Client::nobody(&world));
    for path in ["/healthz", "/livez", "/readyz"] {
        assert_eq!(nobody.get(path).await, (200, json!("ok")), "health is for everybody");
    }
    assert_eq!(message(&nobody.get("/version").await), (401, "Unauthorized", "Unauthorized"));
    assert_eq!(admin.get("/version?timeout=5s").await.1["major"], "1");
    let (_, plain) = admin.get("/apis").await;
    assert!(plain["groups"].as_array().is_some_and(|groups| groups.iter().any(|group| group["name"] == "apps")));
    let aggregated = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json";
    let (_, list) = Client::admin(&world).with("accept", aggregated).get("/api").await;
    assert_eq!(list["kind"], "APIGroupDiscoveryList");
    let resources = list["items"][0]["versions"][0]["resources"].as_array().expect("resources");
    let pods = resources.iter().find(|resource| resource["resource"] == "pods").expect("pods");
    assert_eq!(pods["categories"], json!(["all"]));
    let eviction =
        pods["subresources"].as_array().expect("subresources").iter().find(|s| s["subresource"] == "eviction");
    assert_eq!(
        eviction.expect("eviction")["responseKind"],
        json!({"group": "policy", "version": "v1", "kind": "Eviction"})
    );
    let (_, index) = admin.get("/openapi/v3").await;
    let url = index["paths"]["apis/apps/v1"]["serverRelativeURL"].as_str().expect("URL");
    let (_, document) = admin.get(url).await;
    assert!(document["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}"]["patch"].is_object());
    assert_eq!(admin.get("/openapi/v3/apis/nope/v1").await.0, 404);
    assert_eq!(admin.get("/openapi/v2").await.0, 404);
    for path in ["/", "/nope", "/api/v1/nope", "/apis/apps/v9/deployments", "/api/v1/nodes/n/nope", "/api/v1/pods/p"] {
        let answer = admin.get(path).await;
        assert_eq!(message(&answer), (404, "NotFound", "the server could not find the requested resource"), "{path}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_and_refusals() {
    let world = World::start().await;
    let admin = Client::admin(&world);
    let one = format!("{MAPS}/one");
    let (status, created) = admin.post(MAPS, map("one", "1")).await;
    assert_eq!(status, 201);
    let answer = admin.post(MAPS, map("one", "1")).await;
    assert_eq!(message(&answer), (409, "AlreadyExists", "configmaps \"one\" already exists"));
    let answer = admin.get(&format!("{MAPS}/two")).await;
    assert_eq!(message(&answer), (404, "NotFound", "configmaps \"two\" not found"));
    let answer = admin.post("/api/v1/namespaces/nowhere/configmaps", map("one", "1")).await;
    assert_eq!(message(&answer), (404, "NotFound", "namespaces \"nowhere\" not found"));
    let answer = admin.post(MAPS, map("One", "1")).await;
    assert_eq!(message(&answer).0, 422, "a name that is none");

    let mut stale = created.clone();
    stale["data"]["v"] = json!("2");
    assert_eq!(admin.put(&one, stale.clone()).await.0, 200);
    let answer = admin.put(&one, stale).await;
    let text = "Operation cannot be fulfilled on configmaps \"one\": the object has been modified; please apply your changes to the latest version and try again";
    assert_eq!(message(&answer), (409, "Conflict", text));
    assert_eq!(
        admin.patch(&one, PATCH_MERGE, json!({"data": {"w": "3", "v": null}})).await.1["data"],
        json!({"w": "3"})
    );
    let steps =
        json!([{"op": "test", "path": "/data/w", "value": "3"}, {"op": "replace", "path": "/data/w", "value": "4"}]);
    assert_eq!(admin.patch(&one, "application/json-patch+json", steps).await.1["data"], json!({"w": "4"}));
    let strategic = "application/strategic-merge-patch+json";
    assert_eq!(admin.patch(&one, strategic, json!({"data": {"x": "5"}})).await.1["data"], json!({"w": "4", "x": "5"}));
    assert_eq!(admin.patch(&one, "application/apply-patch+yaml", json!({})).await.0, 415);
    assert_eq!(admin.patch(&one, "text/plain", json!({})).await.0, 415);

    let before = admin.get(&one).await.1;
    let dry = admin.patch(&format!("{one}?dryRun=All"), PATCH_MERGE, json!({"data": {"x": "6"}})).await.1;
    assert_eq!(dry["data"]["x"], "6");
    assert_eq!(
        admin.patch(&one, PATCH_MERGE, json!({"data": {"x": "5"}})).await.1,
        before,
        "nothing changed, no new version"
    );
    let unknown = json!({"metadata": {"name": "u"}, "datum": {}});
    let answer = admin.post(&format!("{MAPS}?fieldValidation=Strict"), unknown.clone()).await;
    let text =
        "ConfigMap in version \"v1\" cannot be handled as a ConfigMap: strict decoding error: unknown field \"datum\"";
    assert_eq!(message(&answer), (400, "BadRequest", text));
    assert!(admin.post(MAPS, unknown).await.1["datum"].is_null(), "dropped otherwise");
    let answer = admin.post(MAPS, json!({"metadata": {"name": "t"}, "data": {"a": 1}})).await;
    let text = "ConfigMap in version \"v1\" cannot be handled as a ConfigMap: json: cannot unmarshal number into field data.a of type string";
    assert_eq!(message(&answer), (400, "BadRequest", text));
    for body in ["", "{", "[]", "null", "\"x\"", "\u{0}"] {
        let (status, _) = admin.send("POST", MAPS, "application/json", body.as_bytes().to_vec()).await;
        assert!(matches!(status, 400 | 422), "{body:?}: {status}");
    }
    let (status, _) =
        admin.send("POST", MAPS, "application/vnd.kubernetes.protobuf", b"k8s\0\xff\xff\xff".to_vec()).await;
    assert_eq!(status, 400);
    let (status, _) = admin.send("POST", MAPS, "application/json", vec![b' '; (3 << 20) + 1]).await;
    assert_eq!(status, 413);
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    assert_eq!(admin.send("POST", MAPS, "application/json", deep.into_bytes()).await.0, 400);

    let generated = admin.post(MAPS, json!({"metadata": {"generateName": "g-"}})).await.1;
    assert!(generated["metadata"]["name"].as_str().is_some_and(|name| name.len() == 7 && name.starts_with("g-")));
    assert_eq!(admin.delete(&one, json!({"preconditions": {"uid": "another"}})).await.0, 409);
    assert_eq!(admin.delete(&one, json!({"dryRun": ["All"]})).await.0, 200);
    let (status, answer) = admin.delete(&one, Value::Null).await;
    assert_eq!((status, &answer["status"], &answer["details"]["name"]), (200, &json!("Success"), &json!("one")));
    assert_eq!(admin.delete(&one, Value::Null).await.0, 404);
    assert_eq!(admin.put("/version", json!({})).await.0, 405);
    assert_eq!(admin.get(&format!("{PODS}/p/proxy")).await.0, 501);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_and_watches_fit_together() {
    let mut world = World::start().await;
    let admin = Client::admin(&world);
    for name in ["a", "b", "c", "d"] {
        admin.post(MAPS, map(name, "old")).await;
    }
    let (_, first) = admin.get(&format!("{MAPS}?limit=2&labelSelector=app=old")).await;
    assert_eq!(first["items"].as_array().map(Vec::len), Some(2));
    // What changes between the pages must not be lost.
    admin.patch(&format!("{MAPS}/a"), PATCH_MERGE, json!({"data": {"v": "new"}})).await;
    let token = first["metadata"]["continue"].as_str().expect("there is more");
    let (_, second) = admin.get(&format!("{MAPS}?&limit=2&labelSelector=app%3Dold&continue={token}")).await;
    assert_eq!(second["items"].as_array().map(Vec::len), Some(2));
    // What is behind them is not selected, which only the next page knows.
    let token = second["metadata"]["continue"].as_str().expect("there may be more");
    let (_, third) = admin.get(&format!("{MAPS}?limit=2&labelSelector=app=old&continue={token}")).await;
    assert_eq!((&third["items"], &third["metadata"]["continue"]), (&json!([]), &Value::Null));
    assert_eq!(version(&second), version(&first));
    let events = admin.watch(&format!("{MAPS}?resourceVersion={}", version(&second))).await;
    assert_eq!((&events[0]["type"], &events[0]["object"]["metadata"]["name"]), (&json!("MODIFIED"), &json!("a")));
    assert_eq!(admin.get(&format!("{MAPS}?continue=x")).await.0, 400);

    // An object that enters and leaves a selection is added and deleted.
    let since = version(&admin.get(MAPS).await.1);
    admin.patch(&format!("{MAPS}/b"), PATCH_MERGE, json!({"metadata": {"labels": {"app": "web"}}})).await;
    admin.patch(&format!("{MAPS}/b"), PATCH_MERGE, json!({"metadata": {"labels": {"app": "db"}}})).await;
    admin.delete(&format!("{MAPS}/c"), Value::Null).await;
    let kinds = |events: &[Value]| {
        events.iter().map(|event| event["type"].as_str().unwrap_or("").to_owned()).collect::<Vec<_>>()
    };
    let events = admin.watch(&format!("{MAPS}?labelSelector=app=web&resourceVersion={since}")).await;
    assert_eq!(kinds(&events), ["ADDED", "DELETED"]);
    let events = admin
        .watch(&format!("{MAPS}?fieldSelector=metadata.name=c&resourceVersion={since}&allowWatchBookmarks=true"))
        .await;
    assert_eq!(kinds(&events), ["DELETED", "BOOKMARK"]);
    assert!(version(&events[0]["object"]).parse::<u64>().expect("number") > since.parse().expect("number"));
    let events = admin.watch(&format!("{MAPS}?fieldSelector=metadata.name=a")).await;
    assert_eq!(kinds(&events), ["ADDED"], "without a version all that exists comes first");
    assert_eq!(admin.get(&format!("{MAPS}?watch=true&sendInitialEvents=true")).await.0, 422);

    let table = Client::admin(&world).with("accept", "application/json;as=Table;v=v1;g=meta.k8s.io,application/json");
    let (_, rows) = table.get(MAPS).await;
    assert_eq!((&rows["kind"], &rows["columnDefinitions"][1]["name"]), (&json!("Table"), &json!("Data")));
    let events = table.watch(&format!("{MAPS}?fieldSelector=metadata.name=a")).await;
    assert_eq!(
        (&events[0]["object"]["kind"], &events[0]["object"]["rows"][0]["cells"][0]),
        (&json!("Table"), &json!("a"))
    );
    let partial =
        Client::admin(&world).with("accept", "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1");
    let (_, list) = partial.get(MAPS).await;
    assert_eq!(list["kind"], "PartialObjectMetadataList");
    assert!(list["items"].as_array().expect("items").iter().all(|item| item["data"].is_null()));

    world.restart().await;
    let admin = Client::admin(&world);
    for version in [since.as_str(), "999999999"] {
        let answer = admin.get(&format!("{MAPS}?watch=true&resourceVersion={version}")).await;
        assert_eq!(message(&answer).0, 410, "{version}: no longer known, or of another life");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_may_what() {
    let world = started().await;
    let (admin, accounts) = (Client::admin(&world), "/api/v1/namespaces/default/serviceaccounts");
    admin.post(accounts, json!({"metadata": {"name": "bob"}})).await;
    let request = json!({"spec": {"expirationSeconds": 600}});
    let (status, answer) = admin.post(&format!("{accounts}/bob/token"), request.clone()).await;
    assert_eq!(status, 201);
    let token = answer["status"]["token"].as_str().expect("token").to_owned();
    let bob = || Client::nobody(&world).with("authorization", &format!("Bearer {token}"));
    let (_, who) = bob().post("/apis/authentication.k8s.io/v1/selfsubjectreviews", json!({})).await;
    assert_eq!(who["status"]["userInfo"]["username"], "system:serviceaccount:default:bob");
    let answer = bob().get(PODS).await;
    let text = "pods is forbidden: User \"system:serviceaccount:default:bob\" cannot list resource \"pods\" in API group \"\" in the namespace \"default\"";
    assert_eq!(message(&answer), (403, "Forbidden", text));

    let rbac = "/apis/rbac.authorization.k8s.io/v1/namespaces/default";
    let rules = json!([{"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]}]);
    assert_eq!(admin.post(&format!("{rbac}/roles"), json!({"metadata": {"name": "r"}, "rules": rules})).await.0, 201);
    let subjects = json!([{"kind": "ServiceAccount", "namespace": "default", "name": "bob"}]);
    let binding = json!({"metadata": {"name": "b"}, "roleRef": {"kind": "Role", "name": "r"}, "subjects": subjects});
    assert_eq!(admin.post(&format!("{rbac}/rolebindings"), binding).await.0, 201);
    assert_eq!(bob().get(PODS).await.0, 200);
    assert_eq!(bob().get("/api/v1/pods").await.0, 403, "other namespaces are not his");
    assert_eq!(bob().get(&format!("{PODS}?watch=true")).await.0, 403);

    // Acting as another.
    let answer = bob().with("impersonate-user", "kubernetes-admin").get(PODS).await;
    assert_eq!(message(&answer).0, 403);
    assert_eq!(bob().with("impersonate-group", "system:masters").get(PODS).await.0, 400, "a group without a user");
    assert_eq!(Client::admin(&world).with("impersonate-extra-scopes", "view").get(PODS).await.0, 501, "never ignored");
    let as_bob = || Client::admin(&world).with("impersonate-user", "system:serviceaccount:default:bob");
    assert_eq!((as_bob().get(PODS).await.0, as_bob().get(MAPS).await.0), (200, 403));

    // Reviews of tokens, and what a token is bound to.
    let review = |token: &str, audiences: Value| json!({"spec": {"token": token, "audiences": audiences}});
    let reviews = "/apis/authentication.k8s.io/v1/tokenreviews";
    assert_eq!(admin.post(reviews, review(&token, json!(null))).await.1["status"]["authenticated"], true);
    assert_eq!(admin.post(reviews, review(&token, json!(["vault"]))).await.1["status"]["authenticated"], false);
    assert_eq!(admin.post(reviews, review("x", json!(null))).await.1["status"]["authenticated"], false);
    let containers = json!([{"name": "c", "image": "c:1"}]);
    let (_, pod) = admin.post(PODS, json!({"metadata": {"name": "p"}, "spec": {"containers": containers}})).await;
    let bound = |uid: &Value| json!({"spec": {"audiences": ["vault"], "boundObjectRef": {"kind": "Pod", "apiVersion": "v1", "name": "p", "uid": uid}}});
    assert_eq!(admin.post(&format!("{accounts}/bob/token"), bound(&json!("other"))).await.0, 409);
    let (_, answer) = admin.post(&format!("{accounts}/bob/token"), bound(&pod["metadata"]["uid"])).await;
    let pods_token = answer["status"]["token"].as_str().expect("token");
    let is_valid = |answer: (u16, Value)| answer.1["status"]["authenticated"] == true;
    assert!(is_valid(admin.post(reviews, review(pods_token, json!(["vault", "db"]))).await));
    admin.delete(&format!("{PODS}/p"), Value::Null).await;
    assert!(!is_valid(admin.post(reviews, review(pods_token, json!(["vault"]))).await), "it went with its pod");

    admin.delete(&format!("{accounts}/bob"), Value::Null).await;
    assert_eq!(bob().get(PODS).await.0, 401, "the account is gone");
    admin.post(accounts, json!({"metadata": {"name": "bob"}})).await;
    assert_eq!(bob().get(PODS).await.0, 401, "another one of that name");
    assert_eq!(Client::nobody(&world).with("authorization", "Bearer x.y.z").get(PODS).await.0, 401);
    assert_eq!(Client::nobody(&world).get(PODS).await.0, 401);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn subresources() {
    let world = started().await;
    let admin = Client::admin(&world);
    let containers = json!([{"name": "c", "image": "c:1"}]);
    let (_, pod) = admin.post(PODS, json!({"metadata": {"name": "p"}, "spec": {"containers": containers}})).await;
    assert_eq!((&pod["status"]["phase"], &pod["spec"]["restartPolicy"]), (&json!("Pending"), &json!("Always")));
    let this = format!("{PODS}/p");
    let (_, answer) = admin.patch(&this, PATCH_MERGE, json!({"status": {"phase": "Failed"}})).await;
    assert_eq!(answer["status"]["phase"], "Pending", "the status has its own door");
    let (_, answer) = admin
        .patch(
            &format!("{this}/status"),
            PATCH_MERGE,
            json!({"status": {"message": "m"}, "metadata": {"labels": {"a": "b"}}}),
        )
        .await;
    assert_eq!((&answer["status"]["message"], &answer["metadata"]["labels"]), (&json!("m"), &Value::Null));
    // A pod of a node that nobody knows would be collected.
    world.create("nodes", "", json!({"metadata": {"name": "n1"}})).await;
    let bind = json!({"target": {"kind": "Node", "name": "n1"}});
    assert_eq!(admin.post(&format!("{this}/binding"), bind.clone()).await.0, 201);
    assert_eq!(message(&admin.post(&format!("{this}/binding"), bind).await).0, 409);
    let (status, answer) = admin.delete(&this, json!({})).await;
    assert_eq!(
        (status, &answer["metadata"]["deletionGracePeriodSeconds"]),
        (200, &json!(30)),
        "its node must let it go"
    );
    let (_, answer) = admin.delete(&this, json!({"gracePeriodSeconds": 5})).await;
    assert_eq!(answer["metadata"]["deletionGracePeriodSeconds"], 5);
    assert_eq!(admin.get(&this).await.0, 200);
    admin.delete(&this, json!({"gracePeriodSeconds": 0})).await;
    assert_eq!(admin.get(&this).await.0, 404);

    // The way kube-rs asks for it: no kind, and a key that nobody knows.
    admin.post(PODS, json!({"metadata": {"name": "q"}, "spec": {"containers": containers}})).await;
    let eviction = json!({"delete_options": null, "metadata": {"name": "q"}});
    assert_eq!(admin.post(&format!("{PODS}/q/eviction"), eviction).await.0, 201);
    assert_eq!(admin.get(&format!("{PODS}/q")).await.0, 404);

    let sets = "/apis/apps/v1/namespaces/default/deployments";
    let (_, first) = admin.post(sets, support::deployment("web", 1, "c:1")).await;
    assert_eq!(first["metadata"]["generation"], 1);
    let (_, scale) = admin.patch(&format!("{sets}/web/scale"), PATCH_MERGE, json!({"spec": {"replicas": 3}})).await;
    assert_eq!(
        (&scale["kind"], &scale["spec"]["replicas"], &scale["status"]["selector"]),
        (&json!("Scale"), &json!(3), &json!("app=web"))
    );
    let (_, now) = admin.get(&format!("{sets}/web")).await;
    assert_eq!((&now["spec"]["replicas"], &now["metadata"]["generation"]), (&json!(3), &json!(2)));
    assert_eq!(admin.patch(&format!("{sets}/web/scale"), PATCH_MERGE, json!({"spec": {"replicas": -1}})).await.0, 422);

    let maps = format!("{MAPS}/kept");
    admin.post(MAPS, json!({"metadata": {"name": "kept", "finalizers": ["example.org/wait"]}})).await;
    let (_, answer) = admin.delete(&maps, Value::Null).await;
    assert!(answer["metadata"]["deletionTimestamp"].is_string());
    admin.patch(&maps, PATCH_MERGE, json!({"metadata": {"finalizers": null}})).await;
    assert_eq!(admin.get(&maps).await.0, 404, "gone with its last finalizer");
}
