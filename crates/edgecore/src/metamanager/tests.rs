//! MetaManager between a hub and an agent that the tests play.

use std::collections::VecDeque;
use std::time::Duration;

use serde_json::{Value, json};
use store::Durability;
use tokio_util::sync::CancellationToken;
use wire::Status;

use super::*;

const TIMEOUT: Duration = Duration::from_secs(60);

/// The node: MetaManager runs, the inboxes of the others are the test's.
struct Node {
    context: Context,
    hub: Inbox,
    edged: Inbox,
    database: Database,
    stop: CancellationToken,
    _running: JoinSet<()>,
    _dir: tempfile::TempDir,
}

impl Node {
    /// What the node says when the cloud asks what it has.
    async fn inventory(&mut self) -> Vec<Held> {
        let question = compose::message("cloudhub", "resource", operation::QUERY, inventory::RESOURCE, Content::null());
        let id = question.header.msg_id.clone();
        self.context.send(module::META_MANAGER, question).await.expect("sent");
        loop {
            let answer = self.next_to_cloud().await;
            if answer.header.parent_msg_id == id {
                return answer.content.parse().expect("a list");
            }
        }
    }

    /// With a database that is not new.
    async fn start() -> Self {
        let (dir, database) = empty_database();
        let path = EdgeResource::parse("kube-system/pod/old").expect("path");
        let row = Row::read(&path, &Content::json(&pod("old", 1)).expect("json")).expect("row");
        let table = Table::new(database.clone());
        table.put(row).await.expect("stored");
        table.settle(true).await.expect("stored");
        Self::start_with(dir, database)
    }

    fn start_with(dir: tempfile::TempDir, database: Database) -> Self {
        let stop = CancellationToken::new();
        let modules =
            [(module::META_MANAGER, group::META), (module::EDGE_HUB, group::HUB), (module::EDGED, group::EDGED)];
        let (context, inboxes) = Context::new(&modules, stop.clone());
        let mut inboxes = VecDeque::from(inboxes);
        let mut inbox = inboxes.pop_front().expect("MetaManager's");
        let mut running = JoinSet::new();
        let (bus, db) = (context.clone(), database.clone());
        running.spawn(async move {
            MetaManager::new(db, TIMEOUT).run(bus, &mut inbox).await.expect("no failure");
        });
        let (hub, edged) = (inboxes.pop_front().expect("hub's"), inboxes.pop_front().expect("edged's"));
        Self { context, hub, edged, database, stop, _running: running, _dir: dir }
    }

    async fn connect(&self) {
        let news = compose::message("edgehub", "meta", "connect", "node/connection", Content::text("cloud_connected"));
        self.context.send(module::META_MANAGER, news).await.expect("sent");
    }

    /// A push of the cloud; gives its id.
    async fn push(&self, source: &str, operation: &str, resource: &str, content: &Value) -> String {
        let content = Content::json(content).expect("json");
        let message = compose::message(source, group::RESOURCE, operation, resource, content);
        let id = message.header.msg_id.clone();
        self.context.send(module::META_MANAGER, message).await.expect("sent");
        id
    }

    async fn push_pod(&self, name: &str, version: u32) -> String {
        let resource = format!("default/pod/{name}");
        self.push("edgecontroller", "update", &resource, &pod(name, version)).await
    }

    /// A request of edged.
    async fn ask(&self, operation: &str, resource: &str, content: Content) -> Message {
        let request = compose::message(source::EDGED, group::META, operation, resource, content);
        self.context.send_sync(module::META_MANAGER, request, Duration::from_secs(10)).await.expect("answer")
    }

    /// A request of edged that the cloud answers so; gives what the hub saw of both, and edged's answer.
    async fn ask_cloud(&mut self, request: (&str, &str, Content), answer: Value) -> (Message, Message) {
        let (operation, resource, content) = request;
        let request = compose::message(source::EDGED, group::META, operation, resource, content);
        let id = request.header.msg_id.clone();
        let context = self.context.clone();
        let asking = context.send_sync(module::META_MANAGER, request, Duration::from_secs(10));
        let hub = async {
            let seen = self.hub.recv().await.expect("request");
            assert_ne!(seen.header.msg_id, id, "a fresh id");
            let answer = compose::response(&seen, Content::json(&answer).expect("json"));
            assert!(self.context.respond(answer), "MetaManager waits");
            seen
        };
        let (answer, seen) = tokio::join!(asking, hub);
        (seen, answer.expect("answer"))
    }

    async fn next_to_cloud(&mut self) -> Message {
        tokio::time::timeout(Duration::from_secs(5), self.hub.recv()).await.expect("in time").expect("message")
    }

    async fn next_to_edged(&mut self) -> Message {
        tokio::time::timeout(Duration::from_secs(5), self.edged.recv()).await.expect("in time").expect("message")
    }

    async fn expect_ack(&mut self, id: &str) {
        let ack = self.next_to_cloud().await;
        assert_eq!(ack.route.operation, operation::RESPONSE, "{ack:?}");
        assert_eq!((ack.header.parent_msg_id.as_str(), ack.content.is_ok()), (id, true));
    }

    async fn stored(&self, resource: &str) -> Vec<Value> {
        let answer = self.ask("query", resource, Content::null()).await;
        let texts: Vec<String> = answer.content.parse().expect("a list of texts");
        texts.iter().map(|text| serde_json::from_str(text).expect("an object")).collect()
    }
}

fn empty_database() -> (tempfile::TempDir, Database) {
    let dir = tempfile::tempdir().expect("dir");
    let database = Database::open(&dir.path().join("edge.db"), SCHEMA, Durability::Full).expect("database");
    (dir, database)
}

fn pod(name: &str, version: u32) -> Value {
    json!({"kind": "Pod", "apiVersion": "v1",
        "metadata": {"name": name, "namespace": "default", "uid": format!("uid-{name}"), "resourceVersion": version.to_string()}})
}

fn text(message: &Message) -> String {
    String::from_utf8_lossy(&message.content.payload()).into_owned()
}

#[tokio::test]
async fn pushes_are_stored_acknowledged_and_passed_on_in_order() {
    let mut node = Node::start().await;
    let mut ids = Vec::new();
    for number in 0..100 {
        ids.push(node.push_pod(&format!("p{number}"), 1).await);
    }
    for (number, id) in ids.iter().enumerate() {
        node.expect_ack(id).await;
        assert_eq!(node.next_to_edged().await.route.resource, format!("default/pod/p{number}"));
    }
    assert_eq!(node.stored("default/pod").await.len(), 101);
}

#[tokio::test]
async fn an_acknowledged_object_is_in_the_file() {
    let mut node = Node::start().await;
    let id = node.push_pod("p", 1).await;
    node.expect_ack(&id).await;
    let rows = node.database.read(|c| c.query_row("SELECT count(*) FROM meta", [], |row| row.get::<_, i64>(0)));
    assert_eq!(rows.expect("read"), 2, "this one and an old one");
}

#[tokio::test]
async fn a_full_disk_is_told_to_the_cloud_and_never_acknowledged() {
    let mut node = Node::start().await;
    let database = node.database.clone();
    let limit = |pages: i64| {
        let database = database.clone();
        async move { database.write(move |c| c.pragma_update(None, "max_page_count", pages)).await.expect("limit") }
    };
    limit(1).await;
    let big = json!({"metadata": {"uid": "u", "resourceVersion": "1"}, "data": {"x": "x".repeat(300_000)}});
    let id = node.push("edgecontroller", "update", "default/secret/s", &big).await;
    let refused = node.next_to_cloud().await;
    assert_eq!((refused.route.operation.as_str(), refused.header.parent_msg_id.as_str()), ("error", id.as_str()));
    assert!(text(&refused).contains("disk that holds the database is full"), "{}", text(&refused));
    assert!(node.edged.try_recv().is_none(), "what is not stored is not used");
    limit(1_000_000).await;
    let id = node.push("edgecontroller", "update", "default/secret/s", &big).await;
    node.expect_ack(&id).await;
    assert_eq!(node.next_to_edged().await.route.resource, "default/secret/s");
}

#[tokio::test]
async fn what_nobody_understands_is_acknowledged_all_the_same() {
    let mut node = Node::start().await;
    for (source, operation, resource) in [
        ("edgecontroller", "update", "default/wonder/x"),
        ("edgecontroller", "explode", "default/pod/x"),
        ("edgecontroller", "update", "a/b/c/d/e"),
        ("newcontroller", "insert", "default/thing/x"),
    ] {
        let id = node.push(source, operation, resource, &json!({"metadata": {}})).await;
        node.expect_ack(&id).await;
    }
    let id = node.push("edgecontroller", "update", "default/pod/x", &json!("no object")).await;
    node.expect_ack(&id).await;
    assert_eq!(node.stored("default/pod").await.len(), 1, "only the old one");
}

#[tokio::test]
async fn the_same_version_again_is_acknowledged_again() {
    let mut node = Node::start().await;
    for _ in 0..3 {
        let id = node.push_pod("p", 7).await;
        node.expect_ack(&id).await;
    }
    let id = node.push("edgecontroller", "delete", "default/pod/p", &pod("p", 7)).await;
    node.expect_ack(&id).await;
    let id = node.push("edgecontroller", "delete", "default/pod/p", &pod("p", 7)).await;
    node.expect_ack(&id).await;
    assert_eq!(node.stored("default/pod").await.len(), 1, "only the old one");
}

#[tokio::test]
async fn without_the_cloud_the_node_answers_what_it_has_and_says_what_it_cannot() {
    let mut node = Node::start().await;
    let id = node.push_pod("p", 1).await;
    node.expect_ack(&id).await;
    assert_eq!(node.stored("default/pod/p").await[0]["metadata"]["uid"], "uid-p");
    assert!(node.stored("default/configmap/none").await.is_empty());
    let refused = node.ask("patch", "default/podpatch/p", Content::text("{}")).await;
    assert_eq!((refused.route.operation.as_str(), text(&refused).as_str()), ("error", "the cloud is out of reach"));
    assert!(node.hub.try_recv().is_none());
}

#[tokio::test]
async fn answers_are_kept_and_acknowledged_but_errors_never_stand_for_the_object() {
    let mut node = Node::start().await;
    node.connect().await;
    let map = json!({"metadata": {"name": "m", "uid": "u", "resourceVersion": "3"}, "data": {"a": "b"}});
    let query = || ("query", "default/configmap/m", Content::null());
    let (seen, answer) = node.ask_cloud(query(), map.clone()).await;
    assert!(!seen.header.msg_id.is_empty());
    assert_eq!(answer.content.parse::<Value>().expect("map"), map);
    assert_eq!(node.next_to_cloud().await.content, Content::ok(), "the answer is acknowledged");
    let table = Table::new(node.database.clone());
    let path = EdgeResource::parse("default/configmap/m").expect("path");
    assert_eq!(table.find(&path).expect("rows").len(), 1);

    let forbidden = json!({"ErrStatus": Status::failure(403, "Forbidden", "no")});
    let (_, answer) = node.ask_cloud(query(), forbidden).await;
    assert_eq!(answer.content.parse::<Vec<String>>().expect("what is kept").len(), 1);
    assert_eq!(table.find(&path).expect("rows").len(), 1, "kept as it was");
    node.next_to_cloud().await;

    for half in
        [json!({}), json!({"metadata": {"name": "other", "uid": "x"}}), json!({"kind": "Status", "status": "Failure"})]
    {
        let (_, answer) = node.ask_cloud(query(), half).await;
        assert_eq!(answer.content.parse::<Vec<String>>().expect("what is kept").len(), 1);
        node.next_to_cloud().await;
        assert!(table.find(&path).expect("rows")[0].contains("\"u\""), "half an object replaces none");
    }

    let gone = json!({"ErrStatus": Status::failure(404, "NotFound", "gone")});
    let (_, answer) = node.ask_cloud(query(), gone).await;
    assert!(answer.content.object().is_err(), "edged is told");
    assert!(table.find(&path).expect("rows").is_empty(), "what is gone in the cloud is gone here");
}

#[tokio::test]
async fn the_objects_of_a_patch_and_of_a_registration_are_kept() {
    let mut node = Node::start().await;
    node.connect().await;
    let object = json!({"metadata": {"name": "n", "uid": "u", "resourceVersion": "5"}});
    let insert = ("insert", "null/node/n", Content::json(&object).expect("json"));
    node.ask_cloud(insert, json!({"Object": object, "Err": null})).await;
    node.next_to_cloud().await;
    let stored = node.stored("null/node/n").await;
    assert_eq!((&stored[0]["kind"], &stored[0]["metadata"]["resourceVersion"]), (&json!("Node"), &json!("5")));

    let patched = json!({"metadata": {"name": "n", "uid": "u", "resourceVersion": "6"}});
    let patch = ("patch", "null/nodepatch/n", Content::text("{}"));
    node.ask_cloud(patch, json!({"Object": patched, "Err": null})).await;
    assert_eq!(node.stored("null/node/n").await[0]["metadata"]["resourceVersion"], "6");
    assert!(node.hub.try_recv().is_none(), "the answer to a patch is not acknowledged");
}

#[tokio::test]
async fn a_silent_cloud_does_not_take_away_what_the_node_has() {
    let mut node = Node::start().await;
    let map = json!({"metadata": {"name": "m", "uid": "u", "resourceVersion": "3"}});
    let id = node.push("edgecontroller", "update", "default/configmap/m", &map).await;
    node.expect_ack(&id).await;
    node.connect().await;
    tokio::time::pause();
    let answer = node.ask("query", "default/configmap/m", Content::null()).await;
    assert_eq!(answer.content.parse::<Vec<String>>().expect("list").len(), 1);
}

#[tokio::test]
async fn at_the_end_what_is_stored_is_acknowledged_still() {
    let mut node = Node::start().await;
    let mut ids = Vec::new();
    for number in 0..50 {
        ids.push(node.push_pod(&format!("p{number}"), 1).await);
    }
    // At least the first is taken before the end comes.
    node.expect_ack(&ids[0]).await;
    node.stop.cancel();
    while node._running.join_next().await.is_some() {}
    let acknowledged = std::iter::from_fn(|| node.hub.try_recv()).count() + 1;
    let rows = node.database.read(|c| c.query_row("SELECT count(*) FROM meta", [], |row| row.get::<_, isize>(0)));
    assert_eq!(acknowledged as isize + 1, rows.expect("read"), "neither more nor fewer");
}

#[tokio::test]
async fn a_late_answer_is_kept_then_acknowledged() {
    let mut node = Node::start().await;
    let map = json!({"metadata": {"name": "m", "uid": "u", "resourceVersion": "3"}});
    let id = node.push("edgecontroller", "response", "default/configmap/m", &map).await;
    node.expect_ack(&id).await;
    assert_eq!(node.stored("default/configmap/m").await.len(), 1);
    let error = json!({"ErrStatus": Status::failure(404, "NotFound", "gone")});
    let id = node.push("edgecontroller", "response", "default/secret/s", &error).await;
    node.expect_ack(&id).await;
    assert!(node.stored("default/secret/s").await.is_empty());
    assert!(node.edged.try_recv().is_none());
}

#[tokio::test]
async fn the_cloud_gets_edgeds_answer_to_a_volume_operation() {
    let mut node = Node::start().await;
    let id = node.push("cloudhub", "createvolume", "default/volume/v", &json!("{}")).await;
    let request = node.next_to_edged().await;
    node.context.respond(compose::error(&request, "volumes are not supported"));
    let answer = node.next_to_cloud().await;
    assert_eq!((answer.header.parent_msg_id, answer.route.resource.as_str()), (id, "default/volume/v"));
    assert_eq!(answer.content, Content::text("volumes are not supported"));
}

#[tokio::test]
async fn a_fresh_database_names_the_pods_only_after_the_cloud_has() {
    let (dir, database) = empty_database();
    assert!(!Table::new(database.clone()).is_settled());
    let mut node = Node::start_with(dir, database);
    tokio::time::pause();
    let list = || compose::message(source::EDGED, group::META, "query", "default/pod", Content::null());
    let wait = Duration::from_secs(60);
    let alone = node.context.send_sync(module::META_MANAGER, list(), wait).await.expect("answer");
    assert_eq!(alone.route.operation, "error", "without the cloud pods that run are left alone");

    let began = tokio::time::Instant::now();
    node.connect().await;
    tokio::time::resume();
    let id = node.push_pod("p", 1).await;
    node.expect_ack(&id).await;
    assert_eq!(node.next_to_edged().await.route.resource, "default/pod/p", "but what is sent is run at once");
    tokio::time::pause();
    let answer = node.context.send_sync(module::META_MANAGER, list(), wait).await.expect("answer");
    assert_eq!(answer.content.parse::<Vec<String>>().expect("list").len(), 1);
    assert!(began.elapsed() >= Duration::from_secs(14), "{:?}", began.elapsed());
    let began = tokio::time::Instant::now();
    assert_eq!(node.stored("default/pod").await.len(), 1);
    assert!(began.elapsed() < Duration::from_secs(1), "from now on at once");
}

#[tokio::test]
async fn a_cloud_that_says_when_everything_was_sent_is_waited_for_and_once_only() {
    let (dir, database) = empty_database();
    let mut node = Node::start_with(dir, database);
    let (hub, about) = (source::EDGE_HUB_EVENTS, inventory::RESOURCE);
    let news = compose::message(hub, group::META, operation::CONNECT, about, Content::null());
    node.context.send(module::META_MANAGER, news).await.expect("sent");
    node.connect().await;
    let id = node.push_pod("p", 1).await;
    node.expect_ack(&id).await;
    tokio::time::pause();
    let list = || compose::message(source::EDGED, group::META, "query", "default/pod", Content::null());
    let wait = Duration::from_secs(60);
    let early = node.context.send_sync(module::META_MANAGER, list(), wait).await.expect("answer");
    assert_eq!(early.route.operation, "error", "no time is enough");
    assert!(!Table::new(node.database.clone()).is_settled(), "nor is one pod");
    tokio::time::resume();

    let told = compose::message("edgecontroller", "resource", inventory::SYNCED, about, Content::null());
    node.context.send(module::META_MANAGER, told).await.expect("sent");
    assert_eq!(node.stored("default/pod").await.len(), 1);
    assert!(Table::new(node.database.clone()).is_settled(), "also after a restart");
}

#[tokio::test]
async fn the_inventory_tells_what_is_stored_and_its_digest_is_the_clouds() {
    let mut node = Node::start().await;
    let before: usize = node.inventory().await.len();
    for number in 0..20 {
        node.push_pod(&format!("p{number}"), 7).await;
    }
    // Asked at once: the answer counts what came before.
    let held = node.inventory().await;
    assert_eq!(held.len(), before + 20);
    assert!(held.iter().any(|Held(_, path, version)| path == "default/pod/p3" && *version == 7), "{held:?}");
    let mut digest = Digest::default();
    held.iter().for_each(|Held(uid, _, version)| digest.add(uid, *version));
    let (hub, about) = (source::EDGE_HUB_EVENTS, inventory::RESOURCE);
    let digest_told = async || {
        let question = compose::message(hub, group::META, operation::QUERY, about, Content::null());
        let wait = Duration::from_secs(10);
        node.context.send_sync(module::META_MANAGER, question, wait).await.expect("answer").content
    };
    assert_eq!(digest_told().await, Content::text(""), "without its Node");
    let own = json!({"metadata": {"name": "n", "uid": "its-own", "resourceVersion": "3"}});
    node.push("edgecontroller", "update", "null/node/n", &own).await;
    assert_eq!(digest_told().await, Content::text(&digest.to_text()));
}
