//! Random changes under random faults: what was acknowledged is never lost, and in the end the node has what the cloud has.

use std::collections::{BTreeMap, HashSet};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};
use testkit::go_cloud::{GoCloud, Received};

use crate::support::{Edge, eventually, id, pod, push};

const OBJECTS: usize = 6;
const STEPS: usize = 60;

/// One life of an object, from its creation to its deletion: every message about it, oldest first, with its version.
type Life = Vec<(u64, Value)>;

struct World {
    cloud: GoCloud,
    edge: Edge,
    /// The lives of each name, oldest first.
    objects: BTreeMap<String, Vec<Life>>,
    version: u64,
    random: StdRng,
}

#[tokio::test]
async fn nothing_acknowledged_is_lost_and_all_arrives_in_the_end() {
    run(1).await;
}

#[tokio::test]
async fn also_with_other_luck() {
    run(2).await;
}

async fn run(seed: u64) {
    let cloud = GoCloud::start().await.unwrap();
    let edge = Edge::joined(&cloud).await;
    let objects = (0..OBJECTS).map(|number| (format!("p{number}"), Vec::new())).collect();
    let mut world = World { cloud, edge, objects, version: 0, random: StdRng::seed_from_u64(seed) };
    for step in 0..STEPS {
        world.step().await;
        world.check(&format!("seed {seed}, step {step}")).await;
    }
    world.settle().await;
    world.check(&format!("seed {seed}, end")).await;
    world.compare(seed).await;
    assert_eq!(world.cloud.complaints(), Vec::<String>::new(), "seed {seed}");
}

impl World {
    async fn step(&mut self) {
        match self.random.random_range(0..100) {
            0..70 => {
                let name = format!("p{}", self.random.random_range(0..OBJECTS));
                let deletes = self.random.random_bool(0.3);
                self.change(&name, deletes).await;
            }
            70..78 => self.cloud.hang_up(),
            78..84 => {
                self.cloud.kill().await;
                self.cloud.serve().await.unwrap();
            }
            84..92 => {
                self.edge.kill().await;
                self.edge.start().await;
            }
            _ => {
                // Waits until the link stands, so that changes get through at all.
                let (cloud, connections) = (&self.cloud, self.cloud.connections());
                eventually("a link", || (cloud.is_connected() || cloud.connections() > connections).then_some(()))
                    .await;
            }
        }
    }

    async fn change(&mut self, name: &str, deletes: bool) {
        self.version += 1;
        let lives = self.objects.get_mut(name).unwrap();
        let is_over = lives.last().is_none_or(|life| is_deletion(&life[life.len() - 1].1));
        if is_over && deletes {
            return;
        }
        if is_over {
            lives.push(Vec::new());
        }
        let mut content = pod(name, self.version);
        content["metadata"]["uid"] = json!(format!("{name}-{}", lives.len()));
        let message = push(if deletes { "delete" } else { "update" }, &format!("default/pod/{name}"), content);
        lives.last_mut().unwrap().push((self.version, message.clone()));
        // Lost when there is no link; the newest of each life is sent again in the end.
        drop(self.cloud.send(&message).await);
    }

    /// What the node has of each object comes from a message that is at least as new as the newest acknowledged one.
    async fn check(&self, when: &str) {
        let received = self.cloud.received();
        let acknowledged: HashSet<&str> =
            received.iter().filter(|m| m.route("operation") == "response").map(Received::parent).collect();
        let rows = self.rows().await;
        for (name, lives) in &self.objects {
            for (number, life) in lives.iter().enumerate() {
                let acked = life.iter().filter(|(_, message)| acknowledged.contains(id(message)));
                let Some(floor) = acked.map(|(version, _)| *version).max() else { continue };
                let uid = format!("{name}-{}", number + 1);
                match rows.get(name) {
                    Some((found, version)) if *found == uid => {
                        assert!(*version >= floor, "{when}: {uid} is at {version}, acknowledged {floor}");
                    }
                    _ => {
                        let over = life.last().is_some_and(|(_, message)| is_deletion(message));
                        assert!(over || number + 1 < lives.len(), "{when}: {uid} is lost, acknowledged {floor}");
                    }
                }
            }
        }
    }

    /// As the cloud does after a reconnect: the newest message of each life, until all are acknowledged.
    async fn settle(&self) {
        self.edge.connected().await;
        for (_, message) in self.objects.values().flatten().filter_map(|life| life.last()) {
            eventually("a link", || self.cloud.is_connected().then_some(())).await;
            self.cloud.send(message).await.unwrap();
            self.cloud.reply_to(id(message)).await.unwrap();
        }
    }

    async fn compare(&self, seed: u64) {
        let mut expected = BTreeMap::new();
        for (name, lives) in &self.objects {
            if let Some((version, message)) = lives.last().and_then(|life| life.last())
                && !is_deletion(message)
            {
                expected.insert(name.clone(), (format!("{name}-{}", lives.len()), *version));
            }
        }
        assert_eq!(self.rows().await, expected, "seed {seed}");
    }

    /// By name: uid and version. Asked one by one, for the list may have to wait for the cloud.
    async fn rows(&self) -> BTreeMap<String, (String, u64)> {
        let mut rows = BTreeMap::new();
        for name in self.objects.keys() {
            for text in self.edge.query(&format!("default/pod/{name}")).await.as_array().unwrap() {
                let pod: Value = serde_json::from_str(text.as_str().unwrap()).unwrap();
                let part = |key: &str| pod["metadata"][key].as_str().unwrap().to_owned();
                rows.insert(part("name"), (part("uid"), part("resourceVersion").parse().unwrap()));
            }
        }
        rows
    }
}

fn is_deletion(message: &Value) -> bool {
    message["route"]["operation"] == "delete"
}
