//! The program: starts without edgecore, says what is wrong with its configuration, ends when told to.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

const DEADLINE: Duration = Duration::from_secs(30);

fn configured(folder: &Path, protocol: &str) -> Command {
    let (file, folder) = (folder.join("mapper.yaml"), folder.display());
    let text = format!(
        "grpc_server: {{socket_path: {folder}/m.sock}}\n\
         common: {{name: m, protocol: {protocol}, edgecore_sock: {folder}/dmi.sock, http_prt: 1}}\n"
    );
    std::fs::write(&file, text).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_mapper"));
    command.arg("--config-file").arg(file).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[tokio::test]
async fn it_runs_until_told_to_end() {
    let folder = tempfile::tempdir().unwrap();
    for signal in ["TERM", "INT"] {
        let program = configured(folder.path(), "virtual").spawn().unwrap();
        let (socket, end) = (folder.path().join("m.sock"), Instant::now() + DEADLINE);
        while tokio::net::UnixStream::connect(&socket).await.is_err() {
            assert!(Instant::now() < end, "it does not listen");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert!(Command::new("kill").args(["-s", signal, &program.id().to_string()]).status().unwrap().success());
        let output = program.wait_with_output().unwrap();
        let said = said(&output);
        assert!(output.status.success(), "{said}");
        for part in ["the mapper listens", "common.http_prt is not known"] {
            assert!(said.contains(part), "{part}: {said}");
        }
    }
}

#[test]
fn what_is_wrong_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let output = configured(folder.path(), "opcua").output().unwrap();
    assert!(!output.status.success());
    assert!(said(&output).contains("common.protocol is \"opcua\""), "{}", said(&output));
    std::fs::write(folder.path().join("m.sock"), "mine").unwrap();
    let output = configured(folder.path(), "virtual").output().unwrap();
    assert!(!output.status.success());
    assert!(said(&output).contains("m.sock") && said(&output).contains("no socket"), "{}", said(&output));
}
