//! Two hundred followers of one log.

use std::io::{BufRead, BufReader};
use std::sync::mpsc;
use std::time::Duration;

use http_body_util::BodyExt;
use testkit::door::Door;
use testkit::site::{PODS, Site};
use tokio::task::JoinSet;

use super::{Running, kubectl};

/// kubectl takes 40 MB each.
const BY_KUBECTL: usize = 20;
const BY_HTTP: usize = 180;
const AT_ONCE: usize = 16;
const LIMIT: Duration = Duration::from_secs(30);

#[test]
fn two_hundred_followers_all_see_a_new_line() {
    let site = Site::start(70);
    site.create_pod("talk", &["sh", "-c", "mkfifo /tmp/said; echo first; while true; do cat /tmp/said; done"]);
    super::until_written(&site, "talk", "first");
    let (seen, lines) = mpsc::sync_channel(BY_KUBECTL);
    let mut kubectls = Vec::new();
    for _ in 0..BY_KUBECTL {
        let mut child = kubectl(&site, &["logs", "-f", "talk"]).spawn().expect("kubectl");
        let (stdout, seen) = (child.stdout.take().expect("stdout"), seen.clone());
        kubectls.push(Running(child));
        std::thread::spawn(move || {
            BufReader::new(stdout).lines().map_while(Result::ok).try_for_each(|line| seen.send(line))
        });
    }
    let door = Door::of_api(&site.cluster).expect("the API's address");
    let mut follows = Vec::new();
    site.runtime.block_on(async {
        let mut opening = JoinSet::new();
        while follows.len() < BY_HTTP {
            while opening.len() < AT_ONCE && follows.len() + opening.len() < BY_HTTP {
                let door = door.clone();
                opening.spawn(async move {
                    let mut connection = door.open().await?;
                    let mut body = connection.get(&format!("{PODS}/talk/log?follow=true")).await?;
                    assert_eq!(testkit::door::first(&mut body).await?, "first\n");
                    anyhow::Ok((connection, body))
                });
            }
            follows.push(opening.join_next().await.expect("one opens").expect("no panic").expect("a follow"));
        }
    });
    let by_kubectl = |expected: &str| {
        for number in 0..BY_KUBECTL {
            let line =
                lines.recv_timeout(LIMIT).unwrap_or_else(|_| panic!("{number} of {BY_KUBECTL} have {expected:?}"));
            assert_eq!(line, expected);
        }
    };
    by_kubectl("first");
    let began = std::time::Instant::now();
    site.ask(&["exec", "talk", "--", "sh", "-c", "echo a new line >/tmp/said"]);
    by_kubectl("a new line");
    site.runtime.block_on(async {
        for (number, (_, body)) in follows.iter_mut().enumerate() {
            let frame = tokio::time::timeout(LIMIT, body.frame()).await;
            let frame = frame.unwrap_or_else(|_| panic!("{number} of {BY_HTTP} have the new line"));
            let data = frame.expect("it goes on").expect("unbroken").into_data().expect("bytes");
            assert_eq!(data, "a new line\n");
        }
    });
    eprintln!(
        "{} followers have the new line {:.2} s after it was asked for",
        BY_KUBECTL + BY_HTTP,
        began.elapsed().as_secs_f64()
    );
}
