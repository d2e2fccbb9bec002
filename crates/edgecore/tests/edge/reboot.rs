//! A node that starts again with the cable out: everything that its pods refer to is there.

use std::fs;
use std::path::PathBuf;

use serde_json::{Value, json};
use testkit::containerd::Containerd;
use testkit::go_cloud::Answer;

use crate::support::{eventually, id, push};
use crate::whole::{Whole, pod};

const TOKEN: &str = "default/serviceaccounttoken/default";

fn named(name: &str, rest: Value) -> Value {
    let mut object = json!({"metadata": {"name": name, "namespace": "default", "uid": format!("uid-{name}"),
        "resourceVersion": "5"}});
    object.as_object_mut().unwrap().extend(rest.as_object().unwrap().clone());
    object
}

/// A token that has run out long ago, which is better than none.
fn token() -> Value {
    json!({"spec": {"expirationSeconds": 3607, "boundObjectRef": {"uid": pod()["metadata"]["uid"]}},
        "status": {"token": "h.eyJpYXQiOjEsImV4cCI6MzYwOH0.s", "expirationTimestamp": "1970-01-01T01:00:08Z"}})
}

/// A pod that refers to every kind of object.
fn needy(disk: &std::path::Path) -> (Value, Vec<(&'static str, Value)>) {
    let mut pod = pod();
    let container = &mut pod["spec"]["containers"][0];
    container["env"] = json!([{"name": "FROM", "valueFrom": {"configMapKeyRef": {"name": "env", "key": "k"}}}]);
    let volumes = json!([
        {"name": "cfg", "configMap": {"name": "cfg"}},
        {"name": "sec", "secret": {"secretName": "sec"}},
        {"name": "api", "projected": {"sources": [
            {"serviceAccountToken": {"path": "token", "expirationSeconds": 3607}},
            {"configMap": {"name": "ca"}}]}},
        {"name": "data", "persistentVolumeClaim": {"claimName": "data"}}]);
    let mounts = volumes.as_array().unwrap().iter();
    container["volumeMounts"] =
        mounts.map(|v| json!({"name": v["name"], "mountPath": format!("/{}", v["name"].as_str().unwrap())})).collect();
    pod["spec"]["volumes"] = volumes;
    pod["spec"]["imagePullSecrets"] = json!([{"name": "pull"}]);
    let objects = vec![
        ("default/configmap/env", named("env", json!({"data": {"k": "v"}}))),
        ("default/configmap/cfg", named("cfg", json!({"data": {"k": "config"}}))),
        ("default/configmap/ca", named("ca", json!({"data": {"ca.crt": "authority"}}))),
        ("default/secret/sec", named("sec", json!({"data": {"k": "c2VjcmV0"}}))),
        (
            "default/secret/pull",
            named(
                "pull",
                json!({"type": "kubernetes.io/dockerconfigjson",
            "data": {".dockerconfigjson": "e30="}}),
            ),
        ),
        (
            "default/persistentvolumeclaim/data",
            named("data", json!({"spec": {"volumeName": "pv"}, "status": {"phase": "Bound"}})),
        ),
        (
            "null/persistentvolume/pv",
            named("pv", json!({"spec": {"claimRef": {"uid": "uid-data"}, "local": {"path": disk}}})),
        ),
        (TOKEN, token()),
    ];
    (pod, objects)
}

impl Whole {
    fn volume(&self, plugin: &str, path: &str) -> PathBuf {
        let uid = pod()["metadata"]["uid"].as_str().unwrap().to_owned();
        self.dir.path().join("kubelet/pods").join(uid).join(format!("volumes/kubernetes.io~{plugin}")).join(path)
    }

    /// Everything is where the container looks for it.
    fn assert_mounted(&self, when: &str) {
        for (plugin, path, text) in [
            ("configmap", "cfg/k", "config"),
            ("secret", "sec/k", "secret"),
            ("projected", "api/ca.crt", "authority"),
            ("projected", "api/token", "h.eyJpYXQiOjEsImV4cCI6MzYwOH0.s"),
            ("local-volume", "pv/file", "kept"),
        ] {
            let path = self.volume(plugin, path);
            assert_eq!(fs::read_to_string(&path).ok().as_deref(), Some(text), "{when}: {}", path.display());
        }
    }

    /// Loses its power: containers, memory and mounts.
    async fn power_cut(&mut self) {
        self.kill().await;
        self.runtime.reboot();
        Containerd::unmount_below(self.dir.path()).unwrap();
    }

    /// Waits for a container that runs with everything.
    async fn runs(&self, when: &str) {
        eventually(when, || self.runtime.containers().into_iter().find(|container| container.runs("p", "c"))).await;
        let container = self.runtime.containers().into_iter().find(|container| container.runs("p", "c")).unwrap();
        assert_eq!(container.env("FROM").as_deref(), Some("v"), "{when}");
        self.assert_mounted(when);
    }
}

#[tokio::test]
async fn a_reboot_without_the_cloud_mounts_everything_again() {
    let mut node = Whole::start().await;
    let disk = node.dir.path().join("disk");
    fs::create_dir(&disk).unwrap();
    fs::write(disk.join("file"), "kept").unwrap();
    let (pod, objects) = needy(&disk);
    for (resource, object) in &objects {
        node.cloud.answer(resource, Answer::Content(object.clone()));
    }
    node.cloud.connection(0).await.unwrap();
    node.send(&push("update", "default/pod/p", pod)).await;
    node.runs("at first").await;

    // The cable is out.
    node.cloud.kill().await;
    node.power_cut().await;
    assert!(!node.volume("secret", "sec/k").exists(), "memory has forgotten it");
    node.run();
    node.runs("without the cloud").await;

    // The cloud is back, but cannot reach its API: errors and half objects take nothing away.
    node.power_cut().await;
    node.cloud.serve().await.unwrap();
    let status = json!({"metadata": {}, "status": "Failure", "message": "etcdserver: request timed out", "code": 500,
        "reason": "InternalError"});
    for (number, (resource, _)) in objects.iter().enumerate() {
        let answers = [json!({"ErrStatus": status}), json!({}), json!({"metadata": {"name": "other"}})];
        node.cloud.answer(resource, Answer::Content(answers[number % answers.len()].clone()));
    }
    node.run();
    node.runs("with a cloud in trouble").await;
    node.cloud.wait_for("the question for a Secret", |m| m.is("query", "default/secret/sec")).await.unwrap();

    // And nothing of it has been kept.
    node.cloud.kill().await;
    node.power_cut().await;
    node.run();
    node.runs("without the cloud again").await;

    // A change that comes later is taken.
    node.power_cut().await;
    node.cloud.serve().await.unwrap();
    for (resource, object) in &objects {
        node.cloud.answer(resource, Answer::Content(object.clone()));
    }
    node.run();
    eventually("a connection", || node.cloud.is_connected().then_some(())).await;
    let mut newer = named("sec", json!({"data": {"k": "bmV3ZXI="}}));
    newer["metadata"]["resourceVersion"] = json!("6");
    let message = push("update", "default/secret/sec", newer.clone());
    node.cloud.answer("default/secret/sec", Answer::Content(newer));
    node.cloud.send(&message).await.unwrap();
    node.cloud.reply_to(id(&message)).await.unwrap();
    let file = node.volume("secret", "sec/k");
    eventually("the newer secret", || fs::read_to_string(&file).ok().filter(|text| text == "newer")).await;
    node.kill().await;
}
