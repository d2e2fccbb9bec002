//! A tunnel that is cut, and links that lose and delay.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rand::Rng;
use testkit::lossy_link::{Loss, LossyLink};
use testkit::processes;
use testkit::relay::{Relay, Weather};
use testkit::site::Site;

use super::{Running, kubectl, text, with_input};

/// How soon a client has to know.
const AT_ONCE: Duration = Duration::from_secs(5);
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
fn a_cut_tunnel_ends_streams_at_once_and_the_next_work() {
    let mut site = Site::start(74);
    let relay = relayed(&mut site);
    site.create_pod("talk", &["sh", "-c", COUNT]);
    let marker = format!("cut-{}", std::process::id());
    let exec = ["exec", "-i", "talk", "--", "sh", "-c", "cat; exit 7", &marker];
    let process_runs = || {
        let marked = |pid: &i32| {
            processes::program(*pid).is_some_and(|program| program == "sh")
                && processes::command_line(*pid).iter().any(|word| word == marker.as_bytes())
        };
        processes::all().iter().any(marked)
    };
    for reset in [false, true] {
        site.until("an exec to work", || with_input(kubectl(&site, &exec), b"x").status.code() == Some(7));
        let mut running = Running(kubectl(&site, &exec).spawn().expect("kubectl"));
        running.0.stdin.as_mut().expect("stdin").write_all(b"hello\n").expect("written");
        let mut back = [0; 6];
        running.0.stdout.as_mut().expect("stdout").read_exact(&mut back).expect("an answer");
        let mut follow = Running(kubectl(&site, &["logs", "-f", "talk", "--tail=1"]).spawn().expect("kubectl"));
        follow.0.stdout.as_mut().expect("stdout").read_exact(&mut back).expect("a line");
        assert!(process_runs());

        let cut = Instant::now();
        if reset {
            relay.reset()
        } else {
            relay.cut()
        }
        for (what, child) in [("exec", &mut running.0), ("logs -f", &mut follow.0)] {
            let mut ended = None;
            site.until(&format!("{what} to end"), || {
                ended = child.try_wait().expect("ours");
                ended.is_some()
            });
            assert!(cut.elapsed() < AT_ONCE, "{what} has ended after {:?}", cut.elapsed());
            let mut said = String::new();
            child.stderr.take().expect("stderr").read_to_string(&mut said).expect("text");
            assert!(ended.and_then(|ended| ended.code()).is_some_and(|code| code != 0), "{what}: {ended:?} {said}");
            eprintln!("{what} after {:.2} s: {}", cut.elapsed().as_secs_f64(), said.trim());
        }
        site.until("the remote process to end", || !process_runs());
        assert!(cut.elapsed() < AT_ONCE, "the remote process has ended after {:?}", cut.elapsed());
    }
    site.until("an exec to work", || with_input(kubectl(&site, &exec), b"x").status.code() == Some(7));
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
