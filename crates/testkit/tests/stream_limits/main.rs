//! Streams with the real kubectl and a real containerd, where it gets tight: many followers, much text, long lines, any byte, a terminal that changes
//! its size, a tunnel that is cut, a bad link, and an old kubectl.
//!
//! Needs root and what `cargo xtask test` installs and builds.

#![allow(clippy::panic, reason = "a test fails by panicking")]

mod bytes;
mod many;
mod old_kubectl;
mod terminal;
mod trouble;

use std::io::Write;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};

use testkit::site::Site;

/// Larger than any log here: none is rotated.
const LOG_SIZE: &str = "4Gi";

/// A program that is ended with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A kubectl with pipes.
fn kubectl(site: &Site, arguments: &[&str]) -> Command {
    piped(site.kubectl_command("kubectl", arguments))
}

fn piped(mut command: Command) -> Command {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Runs to its end with this input.
fn with_input(mut command: Command, input: &[u8]) -> Output {
    let mut child = command.spawn().expect("kubectl");
    let mut stdin = child.stdin.take().expect("stdin");
    let input = input.to_vec();
    let writing = std::thread::spawn(move || drop(stdin.write_all(&input)));
    let output = child.wait_with_output().expect("kubectl ends");
    writing.join().expect("written");
    output
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Has the node rotate no log.
fn keep_logs(site: &mut Site) {
    site.deployment().stop_edgecore(1).expect("stopped");
    testkit::door::keep_logs(site.deployment(), LOG_SIZE).expect("changed");
    site.deployment().start_edgecore(1).expect("started");
}

/// Waits until a pod's log ends with this line.
fn until_written(site: &Site, pod: &str, last: &str) {
    let tail = ["logs", pod, "--tail=1"];
    site.until(&format!("the log of {pod} to be written"), || text(&site.kubectl(&tail).stdout) == format!("{last}\n"));
}

/// A file beside the deployment's own.
fn file(site: &Site, name: &str) -> PathBuf {
    site.cluster.kubeconfig().with_file_name(name)
}
