//! Logs, exec, attach, port-forward, cp, debug and top with the real kubectl, through a node that only dials out.
//!
//! It needs root, the packages that `cargo xtask test` installs, and the programs that it builds.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use serde_json::json;
use testkit::site::{IMAGE, PODS, Site, pod};

/// A program that is ended with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn kubectl(site: &Site, arguments: &[&str]) -> Command {
    let mut command = site.kubectl_command("kubectl", arguments);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn with_input(site: &Site, arguments: &[&str], input: &[u8]) -> Output {
    let mut child = kubectl(site, arguments).spawn().expect("kubectl");
    let mut stdin = child.stdin.take().expect("stdin");
    let input = input.to_vec();
    let writing = std::thread::spawn(move || drop(stdin.write_all(&input)));
    let output = child.wait_with_output().expect("kubectl ends");
    writing.join().expect("written");
    output
}

fn out(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn fails(site: &Site, arguments: &[&str], because: &str) {
    let output = site.kubectl(arguments);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && text.contains(because), "kubectl {arguments:?}: {}{text}", out(&output));
}

/// Works as soon as the node has opened its tunnel.
fn soon(site: &Site, arguments: &[&str]) -> String {
    let mut found = String::new();
    site.until("the node's tunnel", || {
        let output = site.kubectl(arguments);
        found = out(&output);
        output.status.success()
    });
    found
}

#[test]
fn kubectl_reaches_into_a_node_that_only_dials_out() {
    let mut site = Site::start(64);
    let talk = "mkdir /tmp/www; echo page >/tmp/www/index.html; httpd -p 8080 -h /tmp/www; echo one; echo two; echo three; i=0; while true; do i=$((i+1)); echo tick $i; sleep 0.2; done";
    let mut object = pod("talk", &["sh", "-c", talk]);
    object["spec"]["containers"].as_array_mut().expect("list").push(json!({
        "name": "second", "image": IMAGE, "stdin": true,
        "command": ["sh", "-c", "while read line; do echo got $line; done; sleep 3600"],
    }));
    let main = object["spec"]["containers"][0]["name"].as_str().expect("name").to_owned();
    site.post(PODS, &object);
    site.post(PODS, &pod("crash", &["sh", "-c", "echo last words; exit 3"]));
    site.wait_ready("talk");

    let logs = soon(&site, &["logs", "talk", "-c", &main]);
    assert!(logs.starts_with("one\ntwo\nthree\ntick 1\n"), "{logs}");
    let tail = site.ask(&["logs", "talk", "-c", &main, "--tail=1", "--timestamps"]);
    assert!((1..=2).contains(&tail.lines().count()) && tail.starts_with("20") && tail.contains("Z tick "), "{tail}");
    assert_eq!(site.ask(&["logs", "talk", "-c", &main, "--limit-bytes=7"]), "one\ntwo");
    site.until("the first line to be old", || !site.ask(&["logs", "talk", "-c", &main, "--since=1s"]).contains("one"));
    let follow = kubectl(&site, &["logs", "-f", "talk", "-c", &main, "--tail=1"]).spawn().expect("kubectl");
    let mut follow = Running(follow);
    let mut some = [0; 30];
    follow.0.stdout.as_mut().expect("stdout").read_exact(&mut some).expect("more than the last line");
    drop(follow);
    site.wait("the crash to be seen", |pod| testkit::site::container(pod).1 > 0, &format!("{PODS}/crash"));
    assert_eq!(soon(&site, &["logs", "crash", "--previous"]), "last words\n");
    fails(&site, &["logs", "talk", "-c", "absent"], "container absent is not valid for pod talk");
    fails(&site, &["logs", "talk", "-c", &main, "--previous"], "previous terminated container");

    let failed = site.kubectl(&["exec", "talk", "-c", &main, "--", "sh", "-c", "echo out; echo err >&2; exit 7"]);
    assert_eq!((failed.status.code(), out(&failed).as_str()), (Some(7), "out\n"), "{failed:?}");
    assert!(String::from_utf8_lossy(&failed.stderr).starts_with("err\n"), "{failed:?}");
    let long = vec![b'x'; 2_000_000];
    let counted = with_input(&site, &["exec", "-i", "talk", "-c", &main, "--", "sh", "-c", "wc -c; echo end"], &long);
    assert_eq!(out(&counted), "2000000\nend\n", "{counted:?}");
    // A terminal of 70 columns, as `script` makes one.
    let line = format!(
        "stty cols 70 rows 20; kubectl --kubeconfig {} exec -it talk -c {main} -- sh -c 'sleep 1; stty size; test -t 0 && echo terminal'",
        site.cluster.kubeconfig().display()
    );
    let terminal =
        Command::new("script").args(["-qec", &line, "/dev/null"]).stdin(Stdio::null()).output().expect("script");
    assert!(out(&terminal).contains("20 70") && out(&terminal).contains("terminal"), "{terminal:?}");

    let attached = kubectl(&site, &["attach", "-i", "talk", "-c", "second"]).spawn().expect("kubectl");
    let mut attached = Running(attached);
    attached.0.stdin.as_mut().expect("stdin").write_all(b"hello\n").expect("written");
    let mut answer = [0; 10];
    attached.0.stdout.as_mut().expect("stdout").read_exact(&mut answer).expect("an answer");
    assert_eq!(&answer, b"got hello\n");
    drop(attached);

    let file = site.cluster.kubeconfig().with_file_name("file");
    std::fs::write(&file, &long).expect("written");
    let back = file.with_file_name("back");
    site.ask(&["cp", file.to_str().expect("UTF-8"), "talk:/tmp/file", "-c", &main]);
    site.ask(&["cp", "talk:/tmp/file", back.to_str().expect("UTF-8"), "-c", &main]);
    assert!(std::fs::read(&back).expect("copied") == long);

    let port = TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("a port").port();
    let _forward =
        Running(kubectl(&site, &["port-forward", "talk", &format!("{port}:8080")]).spawn().expect("kubectl"));
    site.until("the forwarded port", || page(port).is_some_and(|page| page.ends_with("page\n")));

    site.ask(&[
        "debug",
        "talk",
        &format!("--image={IMAGE}"),
        "--container=probe",
        "--attach=false",
        "--",
        "sh",
        "-c",
        "echo probing; sleep 3600",
    ]);
    site.until("the debugger", || out(&site.kubectl(&["logs", "talk", "-c", "probe"])) == "probing\n");

    let summary = site.ask(&["get", "--raw", "/api/v1/nodes/edge-1/proxy/stats/summary"]);
    assert!(summary.contains("\"nodeName\"") && summary.contains("edge-1"), "{summary}");
    site.until("usage to be known", || out(&site.kubectl(&["top", "pod"])).contains("talk"));
    site.until("the node's usage to be known", || out(&site.kubectl(&["top", "node"])).contains("edge-1"));

    let walk = |site: &Site| {
        let mut keadm = site.program("keadm");
        let walked = keadm.args(["debug", "tunnel", "edge-1", "--kube-config"]).arg(site.cluster.kubeconfig()).output();
        let walked = walked.expect("keadm runs");
        (walked.status.success(), out(&walked))
    };
    let (reached, said) = walk(&site);
    assert!(reached && said.contains("kubectl logs, exec and the like reach node edge-1"), "{said}");

    // Offline is told at once: which node, and since when.
    site.kill_edge();
    site.until("the end of the tunnel", || {
        String::from_utf8_lossy(&site.kubectl(&["logs", "talk", "-c", &main]).stderr)
            .contains("node edge-1 is not connected, since 20")
    });
    fails(&site, &["exec", "talk", "-c", &main, "--", "true"], "node edge-1 is not connected, since 20");
    let (reached, said) = walk(&site);
    assert!(!reached && said.contains("FAILS tunnel and node") && said.contains("is not connected, since"), "{said}");
    site.deployment().start_edgecore(1).expect("started");
    assert!(soon(&site, &["logs", "talk", "-c", &main]).starts_with("one\n"));
}

fn page(port: u16) -> Option<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").ok()?;
    let mut page = String::new();
    stream.read_to_string(&mut page).ok()?;
    Some(page)
}
