//! Values that are kept, as the node's API shows them.

use edged::api::{DeviceName, DeviceQuestion, Page};
use jiff::Timestamp;
use wire::Status;

use super::*;

const ANNOTATION: &str = crate::devicetwin::history::ANNOTATION;

fn object(uid: &str, annotation: Option<&str>) -> Value {
    let annotations = annotation.map(|text| json!({ANNOTATION: text}));
    json!({"metadata": {"name": "t1", "namespace": "default", "uid": uid, "annotations": annotations},
        "spec": {"deviceModelRef": {"name": "m"}}})
}

impl World {
    /// A device t1 that asks for this.
    async fn device(&mut self, verb: &str, uid: &str, annotation: Option<&str>) {
        self.store(verb, kind::DEVICE, &object(uid, annotation)).await;
        self.settle().await;
    }

    /// The model of t1 asks for this.
    async fn model(&mut self, verb: &str, annotation: &str) {
        let object =
            json!({"metadata": {"name": "m", "namespace": "default", "annotations": {ANNOTATION: annotation}}});
        self.store(verb, kind::DEVICE_MODEL, &object).await;
        self.settle().await;
    }

    /// Reports values of t, and waits until each is answered.
    async fn reports(&mut self, values: impl IntoIterator<Item = u32>) {
        for value in values {
            self.say(UPDATE, &update(&value.to_string())).await;
            self.answered().await;
        }
    }

    /// The next result of an update.
    async fn answered(&mut self) -> Value {
        loop {
            let (topic, told) = self.hear().await;
            if topic.ends_with("/twin/update/result") {
                return told;
            }
        }
    }

    fn ask(&self, question: &DeviceQuestion) -> Result<Value, Box<Status>> {
        pages(self.database())(question)
    }

    /// A page: its values, and where the next begins.
    fn page(
        &self,
        property: &str,
        limit: usize,
        from: Option<&str>,
    ) -> Result<(Vec<u32>, Option<String>), Box<Status>> {
        let page = Page { limit, from: from.map(str::to_owned) };
        let question = DeviceQuestion::History { device: t1(), property: property.to_owned(), since: None, page };
        let answer = self.ask(&question)?;
        let values = answer["items"].as_array().expect("items").iter();
        let values = values.map(|item| item["value"].as_str().expect("text").parse().expect("number")).collect();
        Ok((values, answer["metadata"]["continue"].as_str().map(str::to_owned)))
    }

    fn values(&self) -> Vec<u32> {
        self.page("t", 1000, None).expect("a page").0
    }
}

fn t1() -> DeviceName {
    DeviceName { namespace: "default".to_owned(), name: "t1".to_owned() }
}

#[tokio::test]
async fn what_is_asked_for_is_kept_in_order_over_kills_and_paged_while_more_comes() {
    let mut world = World::start();
    world.device(operation::INSERT, "u1", Some("t=1000")).await;
    world.reports(1..=20).await;
    world.restart().await;
    // A value that stays what it is counts as well.
    world.reports([20, 20, 21]).await;
    let (values, next) = world.page("t", 15, None).expect("a page");
    assert_eq!(values, (1..=15).collect::<Vec<_>>());
    world.reports(22..=24).await;
    let (values, next) = world.page("t", 8, next.as_deref()).expect("a page");
    assert_eq!(values, [16, 17, 18, 19, 20, 20, 20, 21]);
    let (values, end) = world.page("t", 8, next.as_deref()).expect("a page");
    assert_eq!((values, end), (vec![22, 23, 24], None));

    let question = |since: Timestamp| {
        let page = Page { limit: 1, from: None };
        DeviceQuestion::History { device: t1(), property: "t".to_owned(), since: Some(since), page }
    };
    let now = Timestamp::now();
    let since = now.as_millisecond() - 3_600_000;
    let answer = world.ask(&question(Timestamp::from_millisecond(since).expect("a time"))).expect("a page");
    let at: Timestamp = answer["items"][0]["time"].as_str().expect("a time").parse().expect("RFC 3339");
    assert!(answer["items"][0]["value"] == "1" && at <= now && at.as_millisecond() > since, "{answer}");
    let later = Timestamp::from_millisecond(now.as_millisecond() + 3_600_000).expect("a time");
    assert_eq!(world.ask(&question(later)).expect("a page"), json!({"metadata": {}, "items": []}));
    let twin = world.ask(&DeviceQuestion::Twin(t1())).expect("the twin");
    assert_eq!((&twin["twin"]["t"]["actual"]["value"], &twin["history"]["t"]["values"]), (&json!("24"), &json!(26)));

    // It goes with its device, and a device of the same name has nothing of it.
    world.device(operation::UPDATE, "u2", Some("t=1000")).await;
    world.reports([7]).await;
    assert_eq!(world.values(), [7]);
    let expired = world.page("t", 8, next.as_deref()).expect_err("gone");
    assert_eq!((expired.code, expired.reason.as_str()), (410, "Expired"));
    world.device(operation::DELETE, "u2", None).await;
    let gone = world.page("t", 8, None).expect_err("no device");
    assert_eq!((gone.code, gone.reason.as_str()), (404, "NotFound"));
    let rest = world.database().read(|c| c.query_row("SELECT COUNT(*) FROM reported", [], |row| row.get::<_, i64>(0)));
    assert_eq!(rest.expect("a number"), 0);
}

#[tokio::test]
async fn annotations_of_devices_and_models_count_as_they_change() {
    let mut world = World::start();
    world.device(operation::INSERT, "u1", None).await;
    world.reports([1, 2]).await;
    assert!(world.values().is_empty(), "nobody asks");
    // The model comes later.
    world.model(operation::INSERT, "*=3").await;
    world.reports(3..=7).await;
    assert_eq!(world.values(), [5, 6, 7]);
    world.device(operation::UPDATE, "u1", Some("t=2")).await;
    world.reports([8]).await;
    assert_eq!(world.values(), [7, 8], "the device's own counts");
    // What is not understood is as if it were not there, and is told.
    world.device(operation::UPDATE, "u1", Some("t=lots")).await;
    world.reports([9]).await;
    assert_eq!(world.values(), [7, 8, 9]);
    let (_, event) = world.event().await;
    assert_eq!((&event["reason"], &event["involvedObject"]["uid"]), (&json!("HistoryIgnored"), &json!("u1")));
    assert!(event["message"].as_str().is_some_and(|text| text.contains(ANNOTATION) && text.contains("\"t=lots\"")));
    // Not again with a change that has nothing to do with it.
    world.object(operation::UPDATE, "t1", "u1", &[("t", "warm")]).await;
    assert_eq!(world.event().await.1["reason"], "DesiredValueRefused");
    // What was kept stays for its time after nobody asks any more.
    world.device(operation::UPDATE, "u1", Some("")).await;
    world.reports([10]).await;
    world.device(operation::UPDATE, "u1", None).await;
    world.model(operation::DELETE, "*=3").await;
    world.reports([11]).await;
    assert_eq!(world.values(), [7, 8, 9]);
    // The annotations are found again at the start.
    world.model(operation::INSERT, "*=2").await;
    world.reports([12]).await;
    world.restart().await;
    world.reports([13, 14]).await;
    assert_eq!(world.values(), [13, 14]);
}

#[tokio::test]
async fn what_a_broker_says_again_counts_and_is_not_kept() {
    let mut world = World::start();
    world.device(operation::INSERT, "u1", Some("*=10")).await;
    world.reports([1]).await;
    for value in ["1", "7"] {
        let mut again = Arrived::of_test(UPDATE, update(value).into());
        again.was_retained = true;
        world.running().say.send(again).await.expect("taken");
        assert_eq!(world.answered().await["twin"]["t"]["actual"]["value"], value);
    }
    world.reports([2]).await;
    assert_eq!(world.values(), [1, 2]);
}

#[tokio::test]
async fn what_was_not_stored_is_not_kept() {
    let mut world = World::start();
    world.device(operation::INSERT, "u1", Some("*=10")).await;
    world.reports([1]).await;
    let sql = |sql: &'static str| {
        let database = world.database();
        async move { database.write(move |c| c.execute_batch(sql)).await.expect("done") }
    };
    let good = sql("DROP TRIGGER full");
    sql("CREATE TRIGGER full BEFORE INSERT ON property BEGIN SELECT RAISE(ABORT, 'no room'); END").await;
    world.say(UPDATE, &update("2")).await;
    assert_eq!(world.answered().await["code"], 500);
    good.await;
    world.reports([3]).await;
    assert_eq!(world.values(), [1, 3]);
}

#[tokio::test]
async fn wrong_questions_are_answered() {
    let mut world = World::start();
    world.device(operation::INSERT, "u1", None).await;
    world.object(operation::INSERT, "t2", "u2", &[]).await;
    world.settle().await;
    world.reports([1]).await;
    let list = |from: Option<&str>| DeviceQuestion::List(Page { limit: 1, from: from.map(str::to_owned) });
    let first = world.ask(&list(None)).expect("a list");
    assert_eq!(first["items"], json!([{"namespace": "default", "name": "t1", "uid": "u1"}]));
    let second = world.ask(&list(first["metadata"]["continue"].as_str())).expect("a list");
    assert_eq!((&second["items"][0]["name"], &second["metadata"]), (&json!("t2"), &json!({})));
    assert_eq!(world.ask(&list(Some("ä"))).expect_err("no token").code, 400);
    let nobody = DeviceName { name: "nobody".to_owned(), ..t1() };
    assert_eq!(world.ask(&DeviceQuestion::Twin(nobody)).expect_err("no device").code, 404);
    let none = world.page("nothing", 1, None).expect_err("no property");
    assert!(none.code == 404 && none.message.contains("\"nothing\""), "{none:?}");
    for token in ["x", "1", "1.x", ".", "9223372036854775808.1"] {
        let bad = world.page("t", 1, Some(token)).expect_err("no token");
        assert!(bad.code == 400 && bad.message.contains(token), "{bad:?}");
    }
}
