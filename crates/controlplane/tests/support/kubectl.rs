//! The real kubectl.

use std::path::PathBuf;
use std::process::Stdio;

use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use super::World;

pub struct Kubectl<'a> {
    pub world: &'a World,
    pub program: PathBuf,
}

/// The installed kubectl.
pub fn installed() -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|dir| dir.join("kubectl")).find(|program| program.is_file());
    found.expect("kubectl is not installed: run `cargo xtask test`, which brings it")
}

/// Debian's, where `cargo xtask test` has put it.
pub fn old() -> Option<PathBuf> {
    let own = std::env::current_exe().expect("path");
    let program = own.ancestors().nth(3)?.join("debian-kubectl/usr/bin/kubectl");
    program.is_file().then_some(program)
}

impl Kubectl<'_> {
    pub fn command(&self, line: &str) -> Command {
        let mut command = Command::new(&self.program);
        command.args(line.split_whitespace()).kill_on_drop(true);
        // Its cache of discovery must be this server's.
        command
            .env("HOME", self.world.dir.path())
            .env("KUBECONFIG", self.world.plane.as_ref().expect("running").kubeconfig_path());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Whether it worked, and what it wrote to both outputs.
    pub async fn run(&self, line: &str, input: &str) -> (bool, String) {
        let mut command = self.command(line);
        let mut child = command.spawn().expect("kubectl");
        child.stdin.take().expect("stdin").write_all(input.as_bytes()).await.expect("written");
        let output = child.wait_with_output().await.expect("kubectl ends");
        let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
        (output.status.success(), text)
    }

    pub async fn works(&self, line: &str, input: &str) -> String {
        let (worked, text) = self.run(line, input).await;
        assert!(worked, "kubectl {line}: {text}");
        text
    }

    pub async fn fails(&self, line: &str, input: &str, because: &str) {
        let (worked, text) = self.run(line, input).await;
        assert!(!worked && text.contains(because), "kubectl {line}: {text}");
    }
}
