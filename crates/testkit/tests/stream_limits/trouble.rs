//! A tunnel whose connection is cut, and links that lose and delay.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::SocketAddr;
use std::time::Duration;

use rand::Rng;
use testkit::lossy_link::{Loss, LossyLink};
use testkit::relay::{Relay, Weather};
use testkit::site::Site;

use super::{Running, kubectl, text, with_input};

/// Lines of a followed log.
const LINES: usize = 60;
const COUNT: &str = "i=0; while true; do i=$((i+1)); echo line $i; sleep 0.05; done";

/// A relay before the tunnel's port, by which edgecore goes from now on.
fn relayed(site: &mut Site) -> Relay {
    let tunnel = site.deployment().layout.ports().expect("ports").tunnel;
    let cloud = SocketAddr::from(([127, 0, 0, 1], tunnel));
    let relay = site.runtime.block_on(Relay::start(cloud, Weather::default())).expect("relay");
    lead(site, relay.address());
    relay
}

fn lead(site: &mut Site, tunnel: SocketAddr) {
    site.deployment().stop_edgecore(1).expect("stopped");
    site.deployment().lead_streams(1, tunnel).expect("led");
    site.deployment().start_edgecore(1).expect("started");
}

#[test]
fn streams_go_on_when_their_tunnel_is_cut() {
    let mut site = Site::start(74);
    let relay = relayed(&mut site);
    site.create_pod("talk", &["sh", "-c", COUNT]);
    let exec = ["exec", "-i", "talk", "--", "sh", "-c", "cat; exit 7"];
    site.until("an exec to work", || with_input(kubectl(&site, &exec), b"x").status.code() == Some(7));
    let mut running = Running(kubectl(&site, &exec).spawn().expect("kubectl"));
    let mut input = running.0.stdin.take().expect("stdin");
    let mut output = running.0.stdout.take().expect("stdout");
    let mut follow = Running(kubectl(&site, &["logs", "-f", "talk"]).spawn().expect("kubectl"));
    let mut lines = BufReader::new(follow.0.stdout.take().expect("stdout")).lines();
    let mut number = 0;
    let mut echo = |text: String| {
        input.write_all(text.as_bytes()).expect("written");
        let mut back = vec![0; text.len()];
        output.read_exact(&mut back).expect("an answer");
        assert_eq!(String::from_utf8_lossy(&back), text);
    };
    let mut count = |until: usize| {
        while number < until {
            number += 1;
            assert_eq!(lines.next().expect("it goes on").expect("text"), format!("line {number}"));
        }
        number
    };
    for round in 0..6 {
        echo(format!("before {round}\n"));
        let counted = count(10 * (round + 1));
        if round % 2 == 0 {
            relay.reset();
        } else {
            relay.cut();
        }
        echo(format!("after {round}\n"));
        count(counted + 40);
    }
    drop(input);
    let ended = running.0.wait().expect("kubectl");
    assert_eq!(ended.code(), Some(7), "the same command all the time");
}

#[test]
fn streams_over_a_slow_link_are_whole() {
    let mut site = Site::start(75);
    let relay = relayed(&mut site);
    site.create_pod("talk", &["sh", "-c", COUNT]);
    let delay = Duration::from_millis(150);
    relay.set(Weather { delay, jitter: delay / 2, ..Weather::default() });
    are_whole(&site);
}

#[test]
fn streams_over_a_link_that_drops_packets_are_whole() {
    let link = LossyLink::create(76).expect("namespace");
    let mut site = Site::cloud_with(76, |layout| link.lies_aside(layout));
    site.start_edge();
    // Only the tunnel goes over it: edgecore in the namespace would not reach the runtime's streaming server.
    let detour = link.detour(site.deployment().layout.ports().expect("ports").tunnel).expect("a thread");
    lead(&mut site, detour.address());
    site.create_pod("talk", &["sh", "-c", COUNT]);
    link.set(Loss { up: 0.05, down: 0.05 });
    are_whole(&site);
    assert!(link.lost() > 0, "no packet was lost: this tested nothing");
}

/// An exec gives back what it got, and a followed log has each line.
fn are_whole(site: &Site) {
    site.until("the node's tunnel", || site.kubectl(&["exec", "talk", "--", "true"]).status.success());
    let mut follow = Running(kubectl(site, &["logs", "-f", "talk", "--tail=1"]).spawn().expect("kubectl"));
    let mut given = vec![0; 300_000];
    rand::rng().fill_bytes(&mut given);
    let back = with_input(kubectl(site, &["exec", "-i", "talk", "--", "sh", "-c", "cat; exit 7"]), &given);
    assert_eq!(back.status.code(), Some(7), "{}", text(&back.stderr));
    assert!(back.stdout == given, "{} of {} bytes", back.stdout.len(), given.len());
    let mut stdout = follow.0.stdout.take().expect("stdout");
    let mut last = None;
    for _ in 0..LINES {
        let mut line = Vec::new();
        let mut byte = [0];
        while line.last() != Some(&b'\n') {
            stdout.read_exact(&mut byte).expect("it goes on");
            line.push(byte[0]);
        }
        let number: u64 = text(&line).trim_start_matches("line ").trim().parse().expect("a line");
        assert!(last.is_none_or(|last| number == last + 1), "after line {last:?} came {number}");
        last = Some(number);
    }
}
