//! The program `edgecore` killed by SIGKILL at random moments while ten pods come and go, and get other images, on a real containerd. Now
//! and then, and in the end, there is one sandbox for each pod that is wanted and each of its containers once, and no folder, mount or
//! cgroup of any other; and of the pods that stayed no container was replaced but for its image.
//!
//! The seed is printed; `CRASH_SEED` repeats a run. Needs root and what `cargo xtask test` installs and builds.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::IteratorRandom;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};
use testkit::deployment::condition;
use testkit::site::{IMAGE, InRuntime, PODS, Site, pod};

/// Pods at any time.
const COUNT: usize = 10;
/// Kills from one look to the next.
const BETWEEN_LOOKS: usize = 20;
/// The container that is to fail again and again.
const FAILING: &str = "failing";

/// The same image under another name.
const OTHER_IMAGE: &str = "docker.io/library/busybox:other";

/// What is wanted, and what was seen of it last.
struct Churn {
    site: Site,
    random: StdRng,
    seed: u64,
    made: usize,
    /// UIDs by name.
    wanted: BTreeMap<String, String>,
    /// UIDs of all pods that ever were.
    ever: BTreeSet<String>,
    /// UIDs of pods whose main container got the other image; each does once.
    changed: BTreeSet<String>,
    /// Containers of pods that were there at the last look: pod and container, id.
    seen: BTreeMap<(String, String), String>,
}

#[test]
fn a_killed_edgecore_leaves_nothing_and_restarts_nothing() {
    Churn::start(21).run(BETWEEN_LOOKS);
}

#[test]
#[ignore = "slow: two hundred kills take some five minutes"]
fn two_hundred_kills_leave_nothing_and_restart_nothing() {
    Churn::start(22).run(200);
}

impl Churn {
    fn start(number: u8) -> Self {
        let given = std::env::var("CRASH_SEED").ok().and_then(|seed| seed.parse().ok());
        let seed: u64 = given.unwrap_or_else(|| rand::rng().random());
        eprintln!("CRASH_SEED={seed}");
        let site = Site::start(number);
        let settings =
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "settings"}, "data": {"a": "1"}});
        site.post("/api/v1/namespaces/default/configmaps", &settings);
        site.tag_image(IMAGE, OTHER_IMAGE);
        let random = StdRng::seed_from_u64(seed);
        let (wanted, ever, changed) = (BTreeMap::new(), BTreeSet::new(), BTreeSet::new());
        Self { site, random, seed, made: 0, wanted, ever, changed, seen: BTreeMap::new() }
    }

    fn run(mut self, kills: usize) {
        for _ in 0..COUNT {
            self.create();
        }
        for kill in 1..=kills {
            for _ in 0..self.random.random_range(0..3) {
                self.delete_one();
                self.create();
            }
            if self.random.random_range(0..4) == 0 {
                self.change_image();
            }
            // The moment is what is random: in the middle of whatever goes on.
            self.site.pass(Duration::from_millis(self.random.random_range(0..800)));
            self.site.kill_edge();
            self.site.deployment().start_edgecore(1).expect("started");
            if kill % BETWEEN_LOOKS == 0 {
                self.look(kill);
            }
        }
        let left = std::mem::take(&mut self.wanted);
        left.keys().for_each(|name| self.delete(name));
        self.site.wait("all pods to be gone", |list| list["items"].as_array().is_some_and(Vec::is_empty), PODS);
        self.site.until("nothing is left", || {
            self.site.sandboxes().is_empty() && self.site.containers().is_empty() && self.folders().is_empty()
        });
        self.no_traces_but_of(&BTreeSet::new(), &format!("seed {}, at the end", self.seed));
    }

    /// A new pod, of one of four shapes.
    fn create(&mut self) {
        let name = format!("p{}", self.made);
        let mut object = pod(&name, &["sleep", "3600"]);
        let spec = &mut object["spec"];
        let main = spec["containers"][0].clone();
        let with = |name: &str, change: Value| {
            let mut container = main.clone();
            container["name"] = json!(name);
            container.as_object_mut().expect("object").extend(change.as_object().cloned().unwrap_or_default());
            container
        };
        match self.made % 4 {
            0 => {}
            1 => {
                let sidecar = with("sidecar", json!({"restartPolicy": "Always"}));
                spec["initContainers"] = json!([with("init", json!({"command": ["true"]})), sidecar]);
            }
            2 => {
                spec["volumes"] = json!([{"name": "v", "configMap": {"name": "settings"}}, {"name": "m", "emptyDir": {"medium": "Memory"}}]);
                let mounts = json!([{"name": "v", "mountPath": "/v"}, {"name": "m", "mountPath": "/m"}]);
                spec["containers"] = json!([with("main", json!({"volumeMounts": mounts}))]);
            }
            _ => spec["containers"] = json!([main, with(FAILING, json!({"command": ["false"]}))]),
        }
        self.made += 1;
        let made = self.site.post(PODS, &object);
        let uid = made["metadata"]["uid"].as_str().expect("uid").to_owned();
        self.ever.insert(uid.clone());
        self.wanted.insert(name, uid);
    }

    /// The main container of a pod that has not had it yet gets the other image. One pod stays as it was, to compare with.
    fn change_image(&mut self) {
        let old: Vec<_> = self.wanted.iter().filter(|(_, uid)| !self.changed.contains(*uid)).collect();
        let Some((name, uid)) = old.iter().skip(1).choose(&mut self.random) else { return };
        self.site.ask(&["set", "image", &format!("pod/{name}"), &format!("main={OTHER_IMAGE}")]);
        self.changed.insert((*uid).clone());
        // Its main container is replaced, whatever it was at the last look.
        self.seen.remove(&((*uid).clone(), "main".to_owned()));
    }

    fn delete_one(&mut self) {
        let Some(name) = self.wanted.keys().choose(&mut self.random).cloned() else { return };
        self.wanted.remove(&name);
        self.delete(&name);
    }

    fn delete(&self, name: &str) {
        self.site.ask(&["delete", "pod", name, "--wait=false"]);
    }

    /// Waits until things are as they should be, and compares them with the last look.
    fn look(&mut self, kill: usize) {
        let about = format!("seed {}, kill {kill}", self.seed);
        let forgotten =
            self.site.edge_log().lines().filter(|line| line.contains("ended what the runtime still had")).count();
        eprintln!("{about}: the runtime had lost count of {forgotten} containers");
        let (wanted, changed) = (&self.wanted, &self.changed);
        let is_changed = |pod: &Value| pod["metadata"]["uid"].as_str().is_some_and(|uid| changed.contains(uid));
        let is_settled = |pod: &Value| {
            let statuses = pod["status"]["containerStatuses"].as_array().cloned().unwrap_or_default();
            let fails = statuses.iter().any(|status| status["name"] == FAILING && status["restartCount"] != json!(0));
            condition(pod, "Ready") == Some("True") || fails
        };
        self.site.until(&format!("the images to be as they are wanted ({about})"), || {
            let mains: Vec<_> =
                self.site.containers().into_iter().filter(|c| c.name == "main" && c.is_running).collect();
            let is_wanted = |uid: &String| wanted.values().any(|wanted| wanted == uid);
            let (new, old): (Vec<_>, Vec<_>) =
                mains.iter().filter(|c| is_wanted(&c.uid)).partition(|c| changed.contains(&c.uid));
            let hashes = |list: &[&InRuntime]| list.iter().map(|c| c.hash.clone()).collect::<BTreeSet<_>>();
            let (new, old) = (hashes(&new), hashes(&old));
            new.len() <= 1 && old.len() <= 1 && new.is_disjoint(&old)
        });
        let list = self.site.wait(
            &format!("only the wanted pods to be left ({about})"),
            |list| {
                let items = list["items"].as_array().cloned().unwrap_or_default();
                items.len() == wanted.len() && items.iter().all(is_settled)
            },
            PODS,
        );
        let uids: BTreeSet<String> = list["items"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|pod| pod["metadata"]["uid"].as_str().map(str::to_owned))
            .collect();
        self.site.until(&format!("one sandbox for each pod, and no other ({about})"), || {
            let sandboxes = self.site.sandboxes();
            sandboxes.len() == uids.len() && sandboxes.iter().all(|sandbox| uids.contains(&sandbox.uid))
        });
        self.site.until(&format!("a folder for each pod, and no other ({about})"), || self.folders() == uids);
        let mut now = BTreeMap::new();
        for item in self.site.containers() {
            assert!(uids.contains(&item.uid), "{about}: {item:?} is of no pod");
            // One that has ended may stay beside its successor.
            if item.name == FAILING || !item.is_running {
                continue;
            }
            let twin = now.insert((item.uid.clone(), item.name.clone()), item.id.clone());
            assert_eq!(twin, None, "{about}: {item:?} runs twice");
        }
        let mains = now.keys().filter(|(_, name)| name == "main").count();
        assert_eq!(mains, uids.len(), "{about}: {now:?}");
        for (container, id) in self.seen.iter().filter(|((uid, _), _)| uids.contains(uid)) {
            assert_eq!(now.get(container), Some(id), "{about}: {container:?} was restarted without need");
        }
        for pod in list["items"].as_array().into_iter().flatten() {
            let statuses = ["containerStatuses", "initContainerStatuses"].map(|list| pod["status"][list].as_array());
            for status in statuses.into_iter().flatten().flatten().filter(|status| status["name"] != FAILING) {
                let name = pod["metadata"]["name"].as_str().expect("name");
                let most = u64::from(is_changed(pod) && status["name"] == "main");
                let count = status["restartCount"].as_u64().expect("count");
                assert!(count <= most, "{about}: {name} {status}\n{}", self.log_of(name));
            }
        }
        self.no_traces_but_of(&uids, &about);
        self.seen = now;
    }

    /// Of pods that are gone there is neither a mount nor a cgroup.
    fn no_traces_but_of(&self, uids: &BTreeSet<String>, about: &str) {
        let gone: Vec<&String> = self.ever.difference(uids).collect();
        self.site.until(&format!("no mount of a pod that is gone ({about})"), || {
            let mounts = std::fs::read_to_string("/proc/self/mountinfo").expect("mounts");
            !gone.iter().any(|uid| mounts.contains(uid.as_str()))
        });
        self.site.until(&format!("no cgroup of a pod that is gone ({about})"), || {
            let names = cgroup_names(Path::new("/sys/fs/cgroup"));
            !gone.iter().any(|uid| names.iter().any(|name| name.ends_with(uid.as_str())))
        });
        let names = cgroup_names(Path::new("/sys/fs/cgroup"));
        let has_cgroup = |uid: &String| names.iter().any(|name| name.ends_with(uid.as_str()));
        assert!(uids.iter().all(has_cgroup), "{about}: not every pod has a cgroup by its UID: {names:?}");
    }

    /// What edgecore has said about a pod, from its first to its last run.
    fn log_of(&self, name: &str) -> String {
        let about = format!("pod=\"{name}\"");
        let log = self.site.edge_log();
        let lines: Vec<&str> = log.lines().filter(|line| line.contains(&about)).collect();
        lines.join("\n")
    }

    /// UIDs of pods that have a folder on the node.
    fn folders(&self) -> BTreeSet<String> {
        let pods = self.site.edge_dir().join("kubelet/pods");
        let entries = std::fs::read_dir(pods).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
    }
}

/// Names of all cgroups.
fn cgroup_names(dir: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    for entry in entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        found.extend(entry.file_name().into_string());
        found.append(&mut cgroup_names(&entry.path()));
    }
    found
}
