//! What a container has written.

use std::time::Duration;

use edged::Settings;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use crate::node_api::{Answer, NodeApi};
use crate::{Site, pod_with};

/// Rotation as often as the test wants it.
fn rotate_often(settings: &mut Settings) {
    settings.container_log_max_size = 4 << 10;
    settings.container_log_monitor_interval = Duration::from_secs(1);
}

/// A container `main` that runs this script.
fn script(name: &str, script: &str) -> Value {
    pod_with(name, |pod| pod["spec"]["containers"][0]["command"] = json!(["sh", "-c", script]))
}

fn logs(pod: &str, query: &str) -> String {
    format!("/containerLogs/default/{pod}/main?{query}")
}

#[tokio::test]
async fn t78_logs_with_all_their_options() {
    let site = Site::start().await;
    let api = NodeApi::find(&site.cloud, &site.settings.root_dir).await;
    // A line of 40,000 bytes comes in three parts, and the second instance says other things than the first.
    let say = "echo one; echo two >&2; head -c 40000 /dev/zero | tr '\\0' x; echo; echo four";
    let first =
        format!("[ -f /tmp/m/x ] && exec sh -c 'echo again; exec sleep 1000'; touch /tmp/m/x; {say}; sleep 1; exit 1");
    site.cloud
        .create(pod_with("talks", |pod| {
            pod["spec"]["containers"][0]["command"] = json!(["sh", "-c", first]);
            pod["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "m", "mountPath": "/tmp/m"}]);
            pod["spec"]["volumes"] = json!([{"name": "m", "emptyDir": {}}]);
        }))
        .await;
    site.until("talks", "restarted", |pod| {
        pod["status"]["containerStatuses"][0]["restartCount"] == 1
            && pod["status"]["containerStatuses"][0]["state"]["running"].is_object()
    })
    .await;
    site.eventually("its second log", async || api.get(&logs("talks", "")).await == (200, "again\n".into())).await;
    let long = "x".repeat(40_000);
    let all = api.text(&logs("talks", "previous=true")).await;
    let mut lines: Vec<&str> = all.lines().collect();
    // Two streams: which of them comes first is the runtime's choice.
    lines.sort_unstable();
    assert_eq!(lines, ["four", "one", "two", &long]);
    let previous = |query: &str| logs("talks", &format!("previous=true&{query}"));
    let end = all.lines().last().map(|line| format!("{line}\n")).unwrap();
    assert_eq!(api.text(&previous("tailLines=1")).await, end);
    assert_eq!(api.text(&previous("tail=all")).await, all);
    assert_eq!(api.text(&previous("tail=0")).await, "");
    assert_eq!(api.text(&previous("limitBytes=7")).await, all[..7]);
    let timed = api.text(&previous("timestamps=true")).await;
    for (line, plain) in timed.lines().zip(all.lines()) {
        let (time, rest) = line.split_once(' ').unwrap();
        assert_eq!(rest, plain);
        let ago = Timestamp::now().duration_since(time.parse().unwrap());
        assert!(ago > SignedDuration::ZERO && ago < SignedDuration::from_secs(120), "{time}");
        let fraction = time.split_once('.').unwrap().1;
        assert!(fraction.len() > 9 && fraction[..9].bytes().all(|digit| digit.is_ascii_digit()), "{time}");
    }
    // Everything is younger than a day and older than the last line's own time.
    assert_eq!(api.text(&previous("sinceSeconds=86400")).await, all);
    let last = timed.lines().last().unwrap().split_once(' ').unwrap().0;
    let since = api.text(&previous(&format!("sinceTime={}", last.replace('+', "%2B")))).await;
    assert!(since.ends_with(&end) && since.len() < all.len());
    assert_eq!(api.text(&previous("sinceTime=2999-01-01T00:00:00Z")).await, "");

    refusals(&site, &api).await;
}

/// What is wrong is said in the kubelet's words.
async fn refusals(site: &Site, api: &NodeApi) {
    site.cloud
        .create(pod_with("waits", |pod| {
            pod["spec"]["containers"][0]["image"] = json!("docker.io/library/none:1");
            pod["spec"]["containers"][0]["imagePullPolicy"] = json!("Never");
        }))
        .await;
    site.run(crate::pod("quiet")).await;
    site.until("waits", "waiting", |pod| {
        pod["status"]["containerStatuses"][0]["state"]["waiting"]["reason"] == "ErrImageNeverPull"
    })
    .await;
    for (path, status, text) in [
        (logs("none", ""), 404, "pod \"none\" does not exist"),
        ("/containerLogs/default/quiet/other".into(), 404, "container \"other\" not found in pod \"quiet\""),
        (logs("waits", ""), 400, "container \"main\" in pod \"waits\" is waiting to start: ErrImageNeverPull"),
        (logs("quiet", "previous=true"), 400, "previous terminated container \"main\" in pod \"quiet\" not found"),
        (logs("quiet", "tailLines=many"), 400, "tailLines: \"many\" is no number"),
        (logs("quiet", "limitBytes=-1"), 422, "limitBytes: Invalid value: -1: must be at least 1"),
    ] {
        assert_eq!(api.get(&path).await, (status, format!("{text}\n")), "{path}");
    }
    // A follow of a container that says nothing begins at once, and ends with the container.
    let mut follow = api.ask("GET", &logs("quiet", "follow=true")).await;
    site.cloud.delete("quiet", 1).await;
    assert_eq!(follow.piece().await, None);
}

#[tokio::test]
async fn t78_no_line_is_lost_over_rotations() {
    let site = Site::start_with(rotate_often).await;
    let api = NodeApi::find(&site.cloud, &site.settings.root_dir).await;
    let count = "i=0; while [ $i -lt 600 ]; do i=$((i+1)); echo line $i; [ $((i % 10)) = 0 ] && sleep 0.15; done; exec sleep 1000";
    site.run(script("counts", count)).await;
    let mut follow = api.ask("GET", &logs("counts", "follow=true")).await;
    let mut slow = api.ask("GET", &logs("counts", "follow=true&timestamps=true")).await;
    let mut text = String::new();
    follow.until(&mut text, "the last line", |text| text.ends_with("line 600\n")).await;
    let expected: String = (1..=600).map(|i| format!("line {i}\n")).collect();
    assert_eq!(text, expected);
    // Who did not read meanwhile has missed nothing, whatever was rotated and compressed.
    let mut timed = String::new();
    slow.until(&mut timed, "the last line", |text| text.ends_with("line 600\n")).await;
    let plain: String = timed.lines().map(|line| format!("{}\n", line.split_once(' ').unwrap().1)).collect();
    assert_eq!(plain, expected);
    let folder = site.log_dir("counts").join("main");
    let names = || {
        let entries = std::fs::read_dir(&folder).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect::<Vec<_>>()
    };
    assert!(names().iter().filter(|name| name.ends_with(".gz")).count() >= 2, "{:?}", names());
    // The tail reaches into files that were rotated, and compressed.
    let kept: usize = {
        let all = api.text(&logs("counts", "tailLines=100000")).await;
        assert!(expected.ends_with(&all), "{all}");
        all.lines().count()
    };
    let current = api.text(&logs("counts", "")).await.lines().count();
    for tail in [1, current, current + 1, kept - 1, kept] {
        let text = api.text(&logs("counts", &format!("tailLines={tail}"))).await;
        assert!(expected.ends_with(&text) && text.lines().count() == tail, "{tail}: {text}");
    }
    // Who follows is told the end.
    site.cloud.delete("counts", 1).await;
    assert_eq!(follow.piece().await, None);
}

#[tokio::test]
async fn t78_many_follow_and_leave_nothing_behind() {
    const MANY: usize = 200;
    let site = Site::start().await;
    let api = NodeApi::find(&site.cloud, &site.settings.root_dir).await;
    site.run(script("talks", "echo begin; until [ -e /go ]; do sleep 0.1; done; echo end; exec sleep 1000")).await;
    let watches = || {
        let entries = std::fs::read_dir("/proc/self/fdinfo").unwrap();
        let infos = entries.filter_map(|entry| std::fs::read_to_string(entry.unwrap().path()).ok());
        infos.map(|text| text.lines().filter(|line| line.starts_with("inotify ")).count()).sum::<usize>()
    };
    let before = watches();
    let mut follows: Vec<(Answer, String)> = Vec::new();
    for _ in 0..MANY {
        follows.push((api.ask("GET", &logs("talks", "follow=true")).await, String::new()));
    }
    for (follow, text) in &mut follows {
        follow.until(text, "the first line", |text| text == "begin\n").await;
    }
    assert_eq!(watches(), before + 1, "one watch for all");
    site.sh("talks", "main", "touch /go").await;
    for (follow, text) in &mut follows {
        follow.until(text, "the second line", |text| text == "begin\nend\n").await;
    }
    // Others are served meanwhile, and clients that leave leave nothing.
    assert_eq!(api.text("/healthz").await, "ok");
    drop(follows);
    site.eventually("no watch is left", async || watches() == before).await;
}
