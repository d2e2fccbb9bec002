//! A machine below a temporary folder, with a runtime and, on request, a systemd.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

use testkit::fake_cri::FakeCri;
use tokio::process::Command;

pub struct Machine {
    dir: tempfile::TempDir,
    pub runtime: FakeCri,
}

/// What a command did.
#[derive(Debug)]
pub struct Run {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Machine {
    pub async fn new() -> Self {
        let dir = tempfile::tempdir().expect("dir");
        let runtime = FakeCri::start(dir.path()).await.expect("runtime");
        std::fs::create_dir(dir.path().join("bin")).expect("dir");
        Self { dir, runtime }
    }

    /// A path of the machine.
    pub fn at(&self, path: &str) -> PathBuf {
        self.root().join(path.trim_start_matches('/'))
    }

    pub fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    pub fn read(&self, path: &str) -> String {
        std::fs::read_to_string(self.at(path)).expect(path)
    }

    pub fn mode(&self, path: &str) -> u32 {
        std::fs::metadata(self.at(path)).expect("file").permissions().mode() & 0o777
    }

    pub fn put(&self, path: &str, content: &str) {
        let path = self.at(path);
        std::fs::create_dir_all(path.parent().expect("folder")).expect("dir");
        std::fs::write(path, content).expect("file");
    }

    /// A program that is found before the system's own.
    pub fn program(&self, name: &str, script: &str) -> PathBuf {
        let path = self.dir.path().join("bin").join(name);
        std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).expect("file");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("mode");
        path
    }

    /// A systemd whose edgecore gets its certificate at once. Calls are recorded in `systemctl.log`.
    pub fn with_systemd(&self) {
        std::fs::create_dir_all(self.at("/run/systemd/system")).expect("dir");
        self.put("/usr/local/bin/edgecore", "a program");
        let root = self.root().display().to_string();
        self.program(
            "systemctl",
            &format!(
                "echo \"$@\" >> {root}/systemctl.log
                 [ \"$1\" = restart ] || exit 0
                 mkdir -p {root}/etc/kubeedge/ca {root}/etc/kubeedge/certs {root}/var/lib/kubeedge
                 touch {root}/etc/kubeedge/ca/rootCA.crt {root}/etc/kubeedge/certs/server.crt {root}/etc/kubeedge/certs/server.key
                 touch {root}/var/lib/kubeedge/edgecore.db
                 rm {root}/etc/kubeedge/bootstrap-edgecore.conf"
            ),
        );
    }

    /// Runs keadm on this machine.
    pub async fn keadm<S: AsRef<str>>(&self, words: &[S]) -> Run {
        self.keadm_with(words, &[]).await
    }

    pub async fn keadm_with<S: AsRef<str>>(&self, words: &[S], environment: &[(&str, &Path)]) -> Run {
        let path = format!("{}:{}", self.dir.path().join("bin").display(), std::env::var("PATH").unwrap_or_default());
        let mut command = Command::new(env!("CARGO_BIN_EXE_keadm"));
        command.args(words.iter().map(AsRef::as_ref)).env("PATH", path).env_remove("KUBECONFIG").stdin(Stdio::null());
        command.envs(environment.iter().copied());
        let Output { status, stdout, stderr } = command.output().await.expect("keadm runs");
        Run {
            code: status.code().expect("it ends by itself"),
            stdout: String::from_utf8(stdout).expect("text"),
            stderr: String::from_utf8(stderr).expect("text"),
        }
    }

    /// `keadm join` on this machine, as node edge-1.
    pub async fn join(&self, flags: &[String]) -> Run {
        let endpoint = format!("--remote-runtime-endpoint={}", self.runtime.endpoint());
        let root = format!("--root-dir={}", self.root().display());
        let mut words = vec!["join".to_owned(), "--edgenode-name=edge-1".to_owned(), endpoint, root];
        words.extend_from_slice(flags);
        self.keadm(&words).await
    }

    /// `keadm reset edge` on this machine.
    pub async fn reset(&self, flags: &[&str]) -> Run {
        let root = format!("--root-dir={}", self.root().display());
        let mut words = vec!["reset", "edge", root.as_str()];
        words.extend_from_slice(flags);
        self.keadm(&words).await
    }
}
