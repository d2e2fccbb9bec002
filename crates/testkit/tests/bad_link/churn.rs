//! Objects of one node that change without a pause, and the comparison of what both sides have of them.

use std::collections::BTreeMap;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};
use store::rusqlite::{Connection, OpenFlags};
use testkit::site::{PODS, Site, pod};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
/// Reads all ConfigMaps of the test.
const READER: &str = "reader";
/// Changes in each stretch of weather.
const CHANGES: usize = 12;

/// A node, and what it is to have.
pub struct Churn {
    /// The programs.
    pub site: Site,
    /// Decides about everything.
    pub random: StdRng,
    seed: u64,
    maps: usize,
    changes: u64,
}

impl Churn {
    /// At a site whose node is Ready, with so many ConfigMaps and a pod that reads them.
    pub fn start(site: Site, maps: usize) -> Self {
        let given = std::env::var("LINK_SEED").ok().and_then(|seed| seed.parse().ok());
        let seed: u64 = given.unwrap_or_else(|| rand::rng().random());
        eprintln!("LINK_SEED={seed}");
        for map in 0..maps {
            site.post(MAPS, &json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name(map)}, "data": {"value": "0"}}));
        }
        let sources: Vec<Value> = (0..maps)
            .map(|map| json!({"configMap": {"name": name(map), "optional": true, "items": [{"key": "value", "path": name(map)}]}}))
            .collect();
        let mut object = pod(READER, &["sleep", "3600"]);
        object["spec"]["volumes"] = json!([{"name": "all", "projected": {"sources": sources}}]);
        object["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "all", "mountPath": "/all"}]);
        site.post(PODS, &object);
        site.wait_ready(READER);
        Self { site, random: StdRng::seed_from_u64(seed), seed, maps, changes: 0 }
    }

    /// Changes objects through so many stretches of weather, then waits in fair weather until both sides have the same.
    pub fn run(mut self, stretches: usize, mut weather: impl FnMut(&mut Self), clear_up: impl FnOnce()) {
        let runs = self.site.containers_of(READER);
        for _ in 0..stretches {
            weather(&mut self);
            for _ in 0..CHANGES {
                self.change_something();
                let pause = Duration::from_millis(self.random.random_range(0..150));
                self.site.pass(pause);
            }
        }
        clear_up();
        self.same_on_both_sides();
        assert_eq!(self.site.containers_of(READER), runs, "nothing was restarted; seed {}", self.seed);
    }

    /// One ConfigMap changes, goes or comes, or the pod is annotated.
    fn change_something(&mut self) {
        self.changes += 1;
        let map = name(self.random.random_range(0..self.maps));
        let value = self.changes.to_string();
        let object =
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": map}, "data": {"value": value}});
        let (site, cluster) = (&self.site, &self.site.cluster);
        let path = format!("{MAPS}/{map}");
        let answer = match self.random.random_range(0..10) {
            0 => site.runtime.block_on(cluster.delete(&path)),
            1 => {
                let annotated = json!({"metadata": {"annotations": {"change": value}}});
                site.runtime.block_on(cluster.patch(&format!("{PODS}/{READER}"), &annotated))
            }
            _ => site.runtime.block_on(async {
                match cluster.patch(&path, &json!({"data": {"value": value}})).await {
                    Ok((404, _)) => cluster.post(MAPS, &object).await,
                    answer => answer,
                }
            }),
        };
        let (status, answer) = answer.expect("the API answers");
        assert!(matches!(status, 200 | 201 | 404), "{status} {answer}");
    }

    fn same_on_both_sides(&self) {
        let mut last = (BTreeMap::new(), BTreeMap::new());
        let deadline = std::time::Instant::now() + testkit::site::LONG;
        while std::time::Instant::now() < deadline {
            last = (self.in_the_api(), self.on_the_node());
            if last.0 == last.1 {
                return;
            }
            self.site.pass(Duration::from_millis(200));
        }
        let (api, node) = last;
        let differ = |a: &BTreeMap<String, String>, b: &BTreeMap<String, String>| {
            a.iter()
                .filter(|(key, version)| b.get(*key) != Some(version))
                .map(|(k, v)| format!("{k}@{v}"))
                .collect::<Vec<_>>()
        };
        assert!(
            api == node,
            "seed {}: the API has {:?}, the node has {:?}",
            self.seed,
            differ(&api, &node),
            differ(&node, &api)
        );
    }

    /// Versions of what the node must have, by path.
    fn in_the_api(&self) -> BTreeMap<String, String> {
        let list = |path: &str, kind: &str| -> Vec<(String, String)> {
            let list = self.site.runtime.block_on(self.site.cluster.get(path)).expect("list");
            let items = list["items"].as_array().cloned().unwrap_or_default();
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            let entry = |item: &Value| {
                let metadata = &item["metadata"];
                (format!("default/{kind}/{}", text(&metadata["name"])), text(&metadata["resourceVersion"]))
            };
            items.iter().map(entry).collect()
        };
        let mut all: BTreeMap<String, String> = list(MAPS, "configmap").into_iter().collect();
        all.extend(list(PODS, "pod"));
        all
    }

    /// Versions of what the node has, by path.
    fn on_the_node(&self) -> BTreeMap<String, String> {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let database =
            Connection::open_with_flags(self.site.edge_dir().join("data/edgecore.db"), flags).expect("database");
        let sql = "SELECT key, revision FROM meta WHERE kind IN ('pod', 'configmap') AND key LIKE 'default/%'";
        let mut statement = database.prepare(sql).expect("table");
        let rows = statement.query_map([], |row| Ok((row.get::<_, String>(0)?, row.get::<_, i64>(1)?.to_string())));
        rows.expect("rows").collect::<Result<_, _>>().expect("rows")
    }
}

fn name(map: usize) -> String {
    format!("map-{map}")
}
