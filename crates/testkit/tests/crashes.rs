//! The program `edgecore` killed by SIGKILL at random moments while pods come and go on a real containerd: afterwards there is
//! one sandbox and one container for each pod that is wanted, nothing else, and nothing was restarted.
//!
//! The seed is printed; `CRASH_SEED` repeats a run. Needs root and what `cargo xtask test` installs and builds.

use std::collections::BTreeSet;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use testkit::deployment::condition;
use testkit::site::{PODS, Site, container, pod};

const KILLS: usize = 6;

#[test]
fn a_killed_edgecore_leaves_nothing_and_restarts_nothing() {
    let given = std::env::var("CRASH_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed: u64 = given.unwrap_or_else(|| rand::rng().random());
    eprintln!("CRASH_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let mut site = Site::start(21);
    let before: BTreeSet<_> = site.tasks();
    let mut wanted = BTreeSet::new();
    for kill in 0..KILLS {
        let name = format!("p{kill}");
        site.post(PODS, &pod(&name, &["sleep", "3600"]));
        wanted.insert(name);
        if random.random_ratio(1, 3)
            && let Some(name) = wanted.pop_first()
        {
            site.ask(&["delete", "pod", &name, "--wait=false"]);
        }
        site.pass(Duration::from_millis(random.random_range(0..1500)));
        site.kill_edge();
        site.deployment().start_edgecore(1).expect("started");
    }
    for name in &wanted {
        let ready = site.wait_ready(name);
        assert_eq!(container(&ready).1, 0, "seed {seed}: {name} was restarted without need");
    }
    site.wait(
        "only the wanted pods to be left",
        |list| {
            let items = list["items"].as_array().cloned().unwrap_or_default();
            items.len() == wanted.len() && items.iter().all(|pod| condition(pod, "Ready") == Some("True"))
        },
        PODS,
    );
    site.until("a sandbox and a container for each", || site.tasks().difference(&before).count() == 2 * wanted.len());
    for name in &wanted {
        site.ask(&["delete", "pod", name, "--wait=false"]);
    }
    site.wait("all pods to be gone", |list| list["items"].as_array().is_some_and(Vec::is_empty), PODS);
    site.until("nothing runs", || site.tasks().difference(&before).count() == 0);
}
