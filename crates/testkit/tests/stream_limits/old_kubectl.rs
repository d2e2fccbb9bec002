//! Debian's kubectl 1.20, which speaks SPDY.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::Duration;

use serde_json::json;
use testkit::site::{IMAGE, PODS, Site, pod};

use super::{Running, file, piped, text, with_input};

/// Where `cargo xtask test` has put it; `None` where there was no network for that.
fn old_kubectl() -> Option<PathBuf> {
    let own = std::env::current_exe().expect("path");
    let program = own.ancestors().nth(3)?.join("debian-kubectl/usr/bin/kubectl");
    program.is_file().then_some(program)
}

#[test]
fn an_old_kubectl_reaches_a_node_too() {
    let Some(program) = old_kubectl() else { return eprintln!("there is no old kubectl: nothing was tested") };
    let site = Site::start(77);
    let old = |arguments: &[&str]| piped(site.kubectl_command(&program, arguments));
    let run = |arguments: &[&str]| -> Output { old(arguments).output().expect("kubectl") };
    let version = text(&run(&["version", "--client", "--short"]).stdout);
    assert!(version.contains("v1.20"), "{version}");
    let talk = "mkdir /tmp/www; echo page >/tmp/www/index.html; httpd -p 8080 -h /tmp/www; echo one; echo two; while true; do sleep 0.2; echo tick; done";
    let mut object = pod("talk", &["sh", "-c", talk]);
    object["spec"]["containers"].as_array_mut().expect("list").push(json!({
        "name": "second", "image": IMAGE, "stdin": true,
        "command": ["sh", "-c", "while read line; do echo got $line; done; sleep 3600"],
    }));
    site.post(PODS, &object);
    site.wait_ready("talk");

    site.until("the node's tunnel", || text(&run(&["logs", "talk", "-c", "main"]).stdout).starts_with("one\ntwo\n"));
    let mut follow = Running(old(&["logs", "-f", "talk", "-c", "main", "--tail=1"]).spawn().expect("kubectl"));
    let mut some = [0; 20];
    follow.0.stdout.as_mut().expect("stdout").read_exact(&mut some).expect("more than the last line");
    drop(follow);

    let failed = run(&["exec", "talk", "-c", "main", "--", "sh", "-c", "echo out; echo err >&2; exit 7"]);
    assert_eq!((failed.status.code(), text(&failed.stdout).as_str()), (Some(7), "out\n"), "{failed:?}");
    assert!(text(&failed.stderr).starts_with("err\n"), "{failed:?}");
    let long = vec![b'x'; 2_000_000];
    let counted =
        with_input(old(&["exec", "-i", "talk", "-c", "main", "--", "sh", "-c", "wc -c; echo end; exit 3"]), &long);
    assert_eq!((counted.status.code(), text(&counted.stdout).as_str()), (Some(3), "2000000\nend\n"), "{counted:?}");
    let line = format!(
        "stty cols 70 rows 20; {} --kubeconfig {} exec -it talk -c main -- sh -c 'sleep 1; stty size; test -t 0 && echo terminal'",
        program.display(),
        site.cluster.kubeconfig().display()
    );
    let mut script = Command::new("script");
    script.args(["-qec", &line, "/dev/null"]).stdin(std::process::Stdio::null());
    let terminal = script.output().expect("script");
    let said = text(&terminal.stdout);
    assert!(said.contains("20 70") && said.contains("terminal"), "{terminal:?}");

    let mut attached = Running(old(&["attach", "-i", "talk", "-c", "second"]).spawn().expect("kubectl"));
    attached.0.stdin.as_mut().expect("stdin").write_all(b"hello\n").expect("written");
    let mut answer = [0; 10];
    attached.0.stdout.as_mut().expect("stdout").read_exact(&mut answer).expect("an answer");
    assert_eq!(&answer, b"got hello\n");
    drop(attached);

    let (here, back) = (file(&site, "here"), file(&site, "back"));
    std::fs::write(&here, &long).expect("written");
    for (from, to) in [(here.to_str(), Some("talk:/tmp/file")), (Some("talk:/tmp/file"), back.to_str())] {
        let copied = run(&["cp", from.expect("UTF-8"), to.expect("UTF-8"), "-c", "main"]);
        assert!(copied.status.success(), "{copied:?}");
    }
    assert!(std::fs::read(&back).expect("copied") == long);

    let port = TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("a port").port();
    let _forward = Running(old(&["port-forward", "talk", &format!("{port}:8080")]).spawn().expect("kubectl"));
    // Twice, since both go by one connection to the node.
    for _ in 0..2 {
        site.until("the forwarded port", || page(port).is_some_and(|page| page.ends_with("page\n")));
    }
}

fn page(port: u16) -> Option<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").ok()?;
    let mut page = String::new();
    stream.read_to_string(&mut page).ok()?;
    Some(page)
}
