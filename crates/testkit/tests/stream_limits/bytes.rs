//! Much text, long lines, and any byte.

use std::process::Stdio;
use std::time::Instant;

use rand::Rng;
use testkit::site::{PODS, Site};

use super::{keep_logs, kubectl, piped, text, until_written, with_input};

const LONG_LINE: usize = 10 << 20;

#[test]
fn lines_of_ten_megabytes_and_any_byte_come_as_they_are() {
    let mut site = Site::start(71);
    keep_logs(&mut site);
    let long =
        format!("for c in a b; do head -c {LONG_LINE} /dev/zero | tr '\\0' $c; echo; done; echo end; sleep 3600");
    site.create_pod("long", &["sh", "-c", &long]);
    // Bytes that text has not, and every one of them.
    site.create_pod(
        "binary",
        &["sh", "-c", "head -c 1000000 /dev/urandom >/tmp/file; (cat /tmp/file; echo; echo end) | tee /tmp/log; touch /tmp/done; sleep 3600"],
    );
    until_written(&site, "long", "end");
    let whole = site.kubectl(&["logs", "long"]).stdout;
    let lines: Vec<&[u8]> = whole.split(|byte| *byte == b'\n').collect();
    let is = |line: &[u8], byte: u8| line.len() == LONG_LINE && line.iter().all(|of| *of == byte);
    let lengths: Vec<usize> = lines.iter().map(|line| line.len()).collect();
    assert!(lines.len() == 4 && is(lines[0], b'a') && is(lines[1], b'b') && lines[2] == b"end", "{lengths:?}");

    until_written(&site, "binary", "end");
    let run = |command: &[&str]| site.kubectl(&[&["exec", "binary", "--"], command].concat()).stdout;
    let sum = |of: &[u8]| text(of).split(' ').next().unwrap_or_default().to_owned();
    let file = run(&["cat", "/tmp/file"]);
    let mut values: Vec<u8> = file.clone();
    values.sort_unstable();
    values.dedup();
    assert_eq!((file.len(), values.len()), (1_000_000, 256));
    let own = |bytes: &[u8]| {
        let mut command = std::process::Command::new("sha256sum");
        command.stderr(Stdio::null());
        sum(&with_input(piped(command), bytes).stdout)
    };
    assert_eq!(own(&file), sum(&run(&["sha256sum", "/tmp/file"])));
    // containerd takes the carriage return before a line's end for a part of that.
    let (log, mut written) = (site.kubectl(&["logs", "binary"]).stdout, run(&["cat", "/tmp/log"]));
    let ends: Vec<bool> = written.windows(2).map(|two| two == b"\r\n").chain([false]).collect();
    let mut ends = ends.into_iter();
    written.retain(|_| !ends.next().unwrap_or_default());
    let differs = log.iter().zip(&written).position(|(one, other)| one != other);
    let around = differs.map(|at| (at, &log[at.saturating_sub(8)..at + 8], &written[at.saturating_sub(8)..at + 8]));
    assert!(log == written, "{} of {} bytes, other ones at {around:?}", log.len(), written.len());
    let mut given = vec![0; 1_000_000];
    rand::rng().fill_bytes(&mut given);
    let back = with_input(kubectl(&site, &["exec", "-i", "binary", "--", "cat"]), &given);
    assert!(back.stdout == given, "{} of {} bytes, {}", back.stdout.len(), given.len(), text(&back.stderr));
}

#[test]
#[ignore = "slow: writes and reads a gigabyte"]
fn a_log_of_a_gigabyte_is_read_whole() {
    let mut site = Site::start(72);
    keep_logs(&mut site);
    let script = "mkfifo /tmp/one /tmp/two; sha256sum </tmp/one >/tmp/sum & wc -c </tmp/two >/tmp/size & \
        head -c 750000000 /dev/urandom | base64 -w 999 | tee /tmp/one /tmp/two; wait; touch /tmp/done; sleep 3600";
    site.create_pod("long", &["sh", "-c", script]);
    let is_done = || site.kubectl(&["exec", "long", "--", "ls", "/tmp/done"]).status.success();
    let deadline = Instant::now() + std::time::Duration::from_secs(300);
    while !is_done() {
        assert!(Instant::now() < deadline, "the log is not written");
        site.pass(std::time::Duration::from_secs(1));
    }
    let expected = site.ask(&["exec", "long", "--", "cat", "/tmp/sum", "/tmp/size"]);
    let began = Instant::now();
    let mut reading = kubectl(&site, &["logs", "long"]).stdin(Stdio::null()).spawn().expect("kubectl");
    let both = "mkfifo one; wc -c <one >size & sum=$(tee one | sha256sum); wait; echo \"$sum\"; cat size";
    let counted = std::process::Command::new("sh")
        .args(["-c", both])
        .current_dir(super::file(&site, "").parent().expect("a folder"))
        .stdin(reading.stdout.take().expect("stdout"))
        .output()
        .expect("sh");
    let seconds = began.elapsed().as_secs_f64();
    let status = reading.wait_with_output().expect("it ends");
    assert!(status.status.success(), "{}", text(&status.stderr));
    assert_eq!(text(&counted.stdout), expected);
    let size: u64 = expected.lines().nth(1).and_then(|size| size.trim().parse().ok()).expect("a size");
    assert!(size > 1_000_000_000, "{size}");
    eprintln!("{size} bytes in {seconds:.1} s, {:.0} MB/s", size as f64 / 1e6 / seconds);
    site.ask(&["delete", "--now", "pod", "long"]);
    site.until("the pod to go", || site.runtime.block_on(site.cluster.get(&format!("{PODS}/long"))).is_err());
}
