//! `keadm gettoken` and `keadm version`.

use std::path::Path;

use crate::cloud::serve;
use crate::machine::Machine;

const SECRET: &str = "/api/v1/namespaces/kubeedge/secrets/tokensecret";

fn kubeconfig(dir: &Path, server: &str) -> std::path::PathBuf {
    let path = dir.join("kubeconfig");
    let text = format!(
        "apiVersion: v1
kind: Config
current-context: c
contexts: [{{name: c, context: {{cluster: c, user: u}}}}]
clusters: [{{name: c, cluster: {{server: \"{server}\"}}}}]
users: [{{name: u, user: {{}}}}]
"
    );
    std::fs::write(&path, text).expect("file");
    path
}

async fn gettoken(machine: &Machine, answer: (u16, String)) -> crate::machine::Run {
    let dir = tempfile::tempdir().expect("dir");
    let (address, _tasks) = serve(None, move |path| match path {
        SECRET => (answer.0, answer.1.clone().into_bytes()),
        _ => (404, b"{}".to_vec()),
    })
    .await;
    let path = kubeconfig(dir.path(), &format!("http://{address}"));
    machine.keadm(&["gettoken", "--kube-config", path.to_str().expect("path")]).await
}

fn secret(token: &str) -> String {
    use k8s_openapi::ByteString;
    let data = [("tokendata".to_owned(), ByteString(token.into()))].into();
    let mut secret = k8s_openapi::api::core::v1::Secret { data: Some(data), ..Default::default() };
    secret.metadata.name = Some("tokensecret".into());
    serde_json::to_string(&secret).expect("JSON")
}

fn status(code: u16, reason: &str) -> (u16, String) {
    let text = format!(
        r#"{{"kind":"Status","apiVersion":"v1","metadata":{{}},"status":"Failure","reason":"{reason}","message":"told","code":{code}}}"#
    );
    (code, text)
}

#[tokio::test]
async fn the_token_of_the_secret_is_printed_and_nothing_else() {
    let machine = Machine::new().await;
    let token = link::token::mint(b"ca", b"key", 1 << 40);
    let run = gettoken(&machine, (200, secret(&token))).await;
    assert_eq!((run.code, run.stdout.as_str(), run.stderr.as_str()), (0, format!("{token}\n").as_str(), ""));

    let run = gettoken(&machine, (200, secret(&link::token::mint(b"ca", b"key", 5)))).await;
    assert_eq!(run.code, 0);
    assert!(run.stderr.contains("has expired"), "{}", run.stderr);
}

#[tokio::test]
async fn without_a_token_the_cause_and_the_cure_are_told() {
    let machine = Machine::new().await;
    for (answer, told) in [
        (status(404, "NotFound"), "start cloudcore on this cluster first"),
        (status(403, "Forbidden"), "does the kubeconfig allow reading it"),
        ((200, secret("garbage")), "delete it and restart cloudcore"),
    ] {
        let run = gettoken(&machine, answer).await;
        assert_eq!(run.code, 1, "{run:?}");
        assert!(run.stderr.contains(told) && run.stdout.is_empty(), "{run:?}");
    }
    let run = machine.keadm(&["gettoken", "--kube-config", "/no/such/file"]).await;
    assert!(run.code == 1 && run.stderr.contains("name another with --kube-config"), "{run:?}");
    let dir = tempfile::tempdir().expect("dir");
    let dead = kubeconfig(dir.path(), "http://127.0.0.1:1");
    let run = machine.keadm_with(&["gettoken"], &[("KUBECONFIG", &dead)]).await;
    assert!(run.code == 1 && run.stderr.contains("127.0.0.1:1/ cannot be reached"), "{run:?}");
    assert_eq!(run.stderr.lines().count(), 1, "{run:?}");
}

#[tokio::test]
async fn the_version_and_what_is_not_there_are_told() {
    let machine = Machine::new().await;
    let run = machine.keadm(&["version", "-o", "short"]).await;
    assert_eq!((run.code, run.stdout.as_str()), (0, "v1.23.1\n"));
    for (line, code, told) in [
        ("init --advertise-address=1.2.3.4", 2, "cloudcore --standalone"),
        ("reset", 2, "keadm reset edge"),
        ("reset cloud --force", 2, "is not in this version"),
        ("join --tokn=x", 2, "--tokn"),
        ("", 2, "Usage"),
    ] {
        let words: Vec<&str> = line.split_whitespace().collect();
        let run = machine.keadm(&words).await;
        assert!(run.code == code && run.stderr.contains(told), "{line}: {run:?}");
    }
    assert_eq!(machine.keadm(&["--help"]).await.code, 0);
}
