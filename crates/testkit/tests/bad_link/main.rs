//! The real programs with a bad link between them, while objects change: behind a relay (delay, jitter, directions that go dead, cuts)
//! and across network namespaces whose packets the kernel drops; with `kill -9` of either side. When it is over, the node's database
//! has what the API has, and nothing else.
//!
//! The seed is printed; `LINK_SEED` repeats a run. Needs root and what `cargo xtask test` installs and builds.

mod churn;

use std::net::SocketAddr;
use std::time::Duration;

use rand::RngExt;
use testkit::lossy_link::{Loss, LossyLink};
use testkit::relay::{Relay, Weather};
use testkit::site::Site;

use churn::Churn;

#[test]
fn a_bad_link_loses_nothing() {
    behind_a_relay(31, 40, 10);
}

#[test]
#[ignore = "slow: two minutes of bad weather"]
fn a_link_that_is_bad_for_long_loses_nothing() {
    behind_a_relay(32, 300, 80);
}

#[test]
fn a_link_that_drops_packets_loses_nothing() {
    across_namespaces(33, 40, 10);
}

#[test]
#[ignore = "slow: three minutes of dropped packets"]
fn a_link_that_drops_packets_for_long_loses_nothing() {
    across_namespaces(34, 300, 80);
}

fn behind_a_relay(number: u8, maps: usize, stretches: usize) {
    let mut site = Site::start(number);
    let websocket = site.deployment().layout.ports().expect("ports").websocket;
    let cloud = SocketAddr::from(([127, 0, 0, 1], websocket));
    let relay = site.runtime.block_on(Relay::start(cloud, Weather::default())).expect("relay");
    site.deployment().stop_edgecore(1).expect("stopped");
    site.deployment().lead_edgecore(1, relay.address()).expect("led");
    site.deployment().start_edgecore(1).expect("started");
    let weather = |churn: &mut Churn| {
        let delay = Duration::from_millis([0, 20, 100][churn.random.random_range(0..3)]);
        let fine = Weather { delay, jitter: delay / 2, ..Weather::default() };
        relay.set(fine);
        match churn.random.random_range(0..8) {
            0 => relay.set(Weather { up_is_dead: true, ..fine }),
            1 => relay.set(Weather { down_is_dead: true, ..fine }),
            2 => {
                relay.set(Weather { is_down: true, ..fine });
                relay.cut();
            }
            3 => relay.cut(),
            4 => crash_edge(churn),
            5 => crash_cloud(churn),
            _ => {}
        }
    };
    Churn::start(site, maps).run(stretches, weather, || relay.set(Weather::default()));
}

fn across_namespaces(number: u8, maps: usize, stretches: usize) {
    let link = LossyLink::create(number).expect("namespace");
    let mut site = Site::cloud_with(number, |layout| link.lies_between(layout));
    site.start_edge();
    let weather = |churn: &mut Churn| {
        let loss = [0.0, 0.05, 0.2][churn.random.random_range(0..3)];
        let fine = Loss { up: loss, down: loss };
        link.set(fine);
        match churn.random.random_range(0..8) {
            0 => link.set(Loss { up: 1.0, ..fine }),
            1 => link.set(Loss { down: 1.0, ..fine }),
            2 | 3 => link.set(Loss { up: 1.0, down: 1.0 }),
            4 => crash_edge(churn),
            5 => crash_cloud(churn),
            _ => {}
        }
    };
    Churn::start(site, maps).run(stretches, weather, || link.set(Loss::default()));
    assert!(link.lost() > 0, "no packet was lost: this tested nothing");
}

fn crash_edge(churn: &mut Churn) {
    churn.site.kill_edge();
    churn.site.deployment().start_edgecore(1).expect("started");
}

fn crash_cloud(churn: &mut Churn) {
    churn.site.kill_cloud();
    churn.site.restart_cloud();
}
