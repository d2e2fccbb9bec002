//! Streams through the real programs and a real containerd while the link between edgecore and cloudcore is cut, reset and stalled at random, and clients
//! come, leave in the middle, and stop reading. Streams go on after it; nothing of what arrives may be wrong, no client may wait for ever, and when all is over nothing
//! is left: no stream, task, open file or process, and no more memory than before.
//!
//! The seed is printed; `SOAK_SEED` repeats a run as far as the machine's own timing allows, and `SOAK_SECONDS` changes how long it lasts. Needs
//! root and what `cargo xtask test` installs and builds.

#![allow(clippy::panic, reason = "a test fails by panicking")]

mod acts;
mod left;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use testkit::door::Door;
use testkit::relay::{Relay, Weather};
use testkit::site::{PODS, Site, pod};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use acts::{Act, Stage, Tally};
use left::Left;

/// Clients at once.
const CLIENTS: usize = 24;
/// What is left must be gone in so long: the longest wait of a server for the next request of an idle connection, and some.
const GONE: Duration = Duration::from_secs(120);
/// After so long a stream over a link that is down must have ended: 40 s until both ends have noticed, 60 s for which they wait, and some.
const STALL: Duration = Duration::from_secs(120);

#[test]
fn streams_over_a_link_that_breaks_leave_nothing() {
    soak(66, Plan { lasts: Duration::from_secs(15), stretch: Duration::from_secs(1), long_stalls: 0 });
}

#[test]
#[ignore = "slow: ten minutes of streams and cuts"]
fn ten_minutes_of_streams_over_a_link_that_breaks_leave_nothing() {
    let given = std::env::var("SOAK_SECONDS").ok().and_then(|seconds| seconds.parse().ok());
    let lasts = Duration::from_secs(given.unwrap_or(600));
    soak(67, Plan { lasts, stretch: Duration::from_secs(6), long_stalls: 2 });
}

struct Plan {
    lasts: Duration,
    /// Fair weather between faults, about.
    stretch: Duration,
    /// Stalls until both ends have given up.
    long_stalls: usize,
}

fn soak(number: u8, plan: Plan) {
    let given = std::env::var("SOAK_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed: u64 = given.unwrap_or_else(|| rand::rng().random());
    eprintln!("SOAK_SEED={seed}");
    let mut site = Site::start(number);
    let link = Link::between(&mut site);
    site.post(PODS, &pod("talk", &["sh", "-c", acts::TALK]));
    site.post(PODS, &pod("book", &["sh", "-c", acts::BOOK]));
    site.wait_ready("talk");
    site.wait_ready("book");
    let door = Door::of_api(&site.cluster).expect("the API's address");
    let marker = format!("soak-{}-{number}", std::process::id());
    let stage = Arc::new(Stage::new(door, site.cluster.kubeconfig().to_owned(), marker.clone()));
    let last = format!("{}\n", acts::BOOK_LINES);
    site.until("the book to be written", || site.kubectl(&["logs", "book", "--tail=1"]).stdout == last.as_bytes());

    // Each act once in fair weather: what is only needed once is there from now on.
    let each_works = |site: &Site| {
        for act in Act::ALL {
            site.until(&format!("{act:?} to work (seed {seed})"), || {
                let ended = site.runtime.block_on(stage.whole(act));
                ended.inspect_err(|error| eprintln!("{act:?}: {error:#}")).is_ok()
            });
        }
    };
    each_works(&site);
    let before = Left::settled(&site, &marker);
    eprintln!("before: {before}");

    let (leaving, tally) = (CancellationToken::new(), Arc::new(Tally::default()));
    let mut clients = JoinSet::new();
    for client in 0..CLIENTS {
        let random = StdRng::seed_from_u64(seed ^ (client as u64 + 1));
        clients.spawn_on(stage.clone().client(random, leaving.clone(), tally.clone()), site.runtime.handle());
    }
    let mut random = StdRng::seed_from_u64(seed);
    let end = Instant::now() + plan.lasts;
    let (mut long_stalls, mut faults, mut most) = (plan.long_stalls, 0, Left::default());
    while Instant::now() < end {
        faults += 1;
        let lasts = match link.fault(&mut random) {
            Fault::Stall if long_stalls > 0 => {
                long_stalls -= 1;
                STALL
            }
            Fault::Stall => Duration::from_millis(random.random_range(500..4000)),
            Fault::Cut => Duration::from_millis(random.random_range(0..1500)),
        };
        site.pass(lasts);
        // Fair weather until a tunnel stands, and for a stretch of work: one that is cut at once makes the node wait ever longer.
        link.clear_up();
        let waited = Instant::now();
        while Instant::now() < end && waited.elapsed() < STALL && Left::now(&site, &marker).tunnels == 0 {
            site.pass(Duration::from_millis(100));
        }
        let stretch = Instant::now() + plan.stretch.mul_f64(random.random_range(0.2..2.0));
        while Instant::now() < end.min(stretch) {
            most = most.max(Left::now(&site, &marker));
            site.pass(Duration::from_millis(500));
        }
    }
    eprintln!("{faults} faults");
    link.clear_up();
    leaving.cancel();
    // Each act has its limit.
    let wrong = site.runtime.block_on(async {
        let mut wrong = 0;
        while let Some(ended) = clients.join_next().await {
            wrong += usize::from(ended.is_err());
        }
        wrong
    });
    eprintln!("{tally}at most: {most}");
    assert_eq!(wrong, 0, "clients found what is wrong, see above; seed {seed}");
    assert!(tally.is_a_test() && faults > 0, "this tested nothing; seed {seed}");

    each_works(&site);
    let deadline = Instant::now() + GONE;
    let mut after = Left::now(&site, &marker);
    while !after.is_gone(&before) {
        assert!(Instant::now() < deadline, "seed {seed}: left behind: {after}; before it was {before}");
        site.pass(Duration::from_millis(500));
        after = Left::now(&site, &marker);
    }
    eprintln!("after: {after}");
}

/// Relays for the hub's connection and for the tunnel.
struct Link {
    hub: Relay,
    tunnel: Relay,
}

enum Fault {
    /// The connections stay, and nothing comes through.
    Stall,
    Cut,
}

impl Link {
    fn between(site: &mut Site) -> Self {
        let ports = site.deployment().layout.ports().expect("ports");
        let relay = |site: &Site, port: u16| {
            let cloud = SocketAddr::from(([127, 0, 0, 1], port));
            site.runtime.block_on(Relay::start(cloud, Weather::default())).expect("relay")
        };
        let link = Self { hub: relay(site, ports.websocket), tunnel: relay(site, ports.tunnel) };
        let deployment = site.deployment();
        deployment.stop_edgecore(1).expect("stopped");
        deployment.lead_edgecore(1, link.hub.address()).expect("led");
        deployment.lead_streams(1, link.tunnel.address()).expect("led");
        deployment.start_edgecore(1).expect("started");
        site.wait(
            "the node again",
            |node| testkit::deployment::condition(node, "Ready") == Some("True"),
            "/api/v1/nodes/edge-1",
        );
        link
    }

    fn fault(&self, random: &mut StdRng) -> Fault {
        let delay = Duration::from_millis([0, 5, 50][random.random_range(0..3)]);
        let fine = Weather { delay, jitter: delay / 2, ..Weather::default() };
        self.tunnel.set(fine);
        match random.random_range(0..9) {
            0 | 1 => self.tunnel.cut(),
            2 | 3 => self.tunnel.reset(),
            4 => {
                self.tunnel.reset();
                self.hub.reset();
            }
            5 => {
                self.tunnel.set(Weather { is_down: true, ..fine });
                self.tunnel.cut();
            }
            6 => {
                self.tunnel.set(Weather { up_is_dead: true, ..fine });
                return Fault::Stall;
            }
            _ => {
                self.tunnel.set(Weather { down_is_dead: true, ..fine });
                return Fault::Stall;
            }
        }
        Fault::Cut
    }

    fn clear_up(&self) {
        for relay in [&self.hub, &self.tunnel] {
            relay.set(Weather::default());
        }
    }
}
