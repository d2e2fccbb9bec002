//! What is wrong with an `edgecore.yaml`: upstream's rules, and those that spare a puzzle later.

use std::net::IpAddr;

use serde_json::Value;

use super::{addresses, go_duration, is_host_port, is_node_name};
use crate::document::Document;

const FEATURE_GATES: [&str; 3] = ["requireAuthorization", "moduleRestart", "disableNodeTaskV1alpha2"];
const TAINT_EFFECTS: [&str; 3] = ["NoSchedule", "PreferNoSchedule", "NoExecute"];
const EDGED: &str = "modules.edged";
const KUBELET: &str = "modules.edged.tailoredKubeletConfig";

/// Remembers every mistake.
pub(super) fn validate(document: &mut Document) {
    if document.text("database.dataSource").is_empty() {
        document.mistake("database.dataSource", "a file is needed");
    }
    edged(document);
    kubelet(document);
    edge_hub(document);
    super::event_bus::validate(document);
    super::edge_stream::validate(document);
    let gates: Vec<String> =
        document.get("featureGates").as_object().into_iter().flatten().map(|(k, _)| k.clone()).collect();
    for gate in gates.iter().filter(|gate| !FEATURE_GATES.contains(&gate.as_str())) {
        document.mistake(&format!("featureGates.{gate}"), &format!("is not known: {}", FEATURE_GATES.join(", ")));
    }
}

fn edged(document: &mut Document) {
    let name = document.text("modules.edged.hostnameOverride");
    if !is_node_name(&name) {
        let why = format!("{name:?} is no valid node name: use lower-case letters, digits, '-' and '.'");
        document.mistake("modules.edged.hostnameOverride", &why);
    }
    let address = document.text("modules.edged.nodeIP");
    if !address.is_empty() && address.parse::<IpAddr>().is_err() {
        document
            .mistake("modules.edged.nodeIP", &format!("{address:?} is no IP address; leave it empty to have it found"));
    }
    absolute(document, &format!("{EDGED}.rootDirectory"));
    let labels = document.get("modules.edged.nodeLabels").clone();
    for (key, value) in labels.as_object().into_iter().flatten().filter(|(_, value)| !value.is_string()) {
        document.mistake(&format!("{EDGED}.nodeLabels.{key}"), &format!("must be a text: write \"{value}\""));
    }
}

fn kubelet(document: &mut Document) {
    let at = |key: &str| format!("{KUBELET}.{key}");
    let driver = document.text(&at("cgroupDriver"));
    if !["cgroupfs", "systemd"].contains(&driver.as_str()) {
        document.mistake(&at("cgroupDriver"), &format!("{driver:?} is not known: use cgroupfs or systemd"));
    }
    absolute(document, &at("podLogsDir"));
    let address = document.text(&at("address"));
    if address.parse::<IpAddr>().is_err() {
        let why = format!("{address:?} is no IP address: use 127.0.0.1, or 0.0.0.0 for all of the node's");
        document.mistake(&at("address"), &why);
    }
    if u16::try_from(document.number(&at("readOnlyPort"))).is_err() {
        document.mistake(&at("readOnlyPort"), "must be a port (1 to 65535), or 0 for no API");
    }
    for key in ["containerRuntimeEndpoint", "imageServiceEndpoint"] {
        let endpoint = document.text(&at(key));
        let optional = key == "imageServiceEndpoint" && endpoint.is_empty();
        if !optional && !endpoint.starts_with("unix:///") && !endpoint.starts_with('/') {
            document.mistake(
                &at(key),
                &format!("{endpoint:?} is no socket: write for example unix:///run/containerd/containerd.sock"),
            );
        }
    }
    let default = super::Config::default_document();
    for (key, value) in default.get(KUBELET).as_object().into_iter().flatten() {
        // A field whose default is a duration holds nothing else.
        let is_duration = value.as_str().is_some_and(|text| go_duration(text).is_some());
        if is_duration && go_duration(&document.text(&at(key))).is_none() {
            document.mistake(&at(key), "is no duration: write for example 10s or 1m30s");
        }
    }
    let (high, low) =
        (document.number(&at("imageGCHighThresholdPercent")), document.number(&at("imageGCLowThresholdPercent")));
    if !(0..=100).contains(&high) || !(0..=100).contains(&low) || low > high {
        let why = format!("{high} must be between 0 and 100 and not below imageGCLowThresholdPercent ({low})");
        document.mistake(&at("imageGCHighThresholdPercent"), &why);
    }
    if document.number(&at("maxPods")) < 0 {
        document.mistake(&at("maxPods"), "must not be negative");
    }
    if document.number(&at("nodeLeaseDurationSeconds")) <= 0 {
        document.mistake(&at("nodeLeaseDurationSeconds"), "must be greater than 0");
    }
    for server in document.texts(&at("clusterDNS")).iter().filter(|server| server.parse::<IpAddr>().is_err()) {
        document.mistake(&at("clusterDNS"), &format!("{server:?} is no IP address"));
    }
    let taints = document.get(&at("registerWithTaints")).clone();
    for (index, taint) in taints.as_array().into_iter().flatten().enumerate() {
        let text = |key: &str| taint.get(key).and_then(Value::as_str).unwrap_or_default();
        if text("key").is_empty() || !TAINT_EFFECTS.contains(&text("effect")) {
            let why = format!("needs a key and an effect ({})", TAINT_EFFECTS.join(", "));
            document.mistake(&format!("{KUBELET}.registerWithTaints[{index}]"), &why);
        }
    }
}

fn edge_hub(document: &mut Document) {
    if !document.flag("modules.edgeHub.enable") {
        return;
    }
    match (document.flag("modules.edgeHub.websocket.enable"), document.flag("modules.edgeHub.quic.enable")) {
        (true, false) => {}
        (true, true) => document.mistake("modules.edgeHub", "websocket and quic are both enabled: enable one of them"),
        (false, true) => {
            document.mistake("modules.edgeHub.quic", "QUIC is not supported: enable websocket instead");
        }
        (false, false) => {
            document.mistake("modules.edgeHub", "neither websocket nor quic is enabled: enable websocket")
        }
    }
    if !addresses(&document.text("modules.edgeHub.httpServer")).iter().all(|url| url.starts_with("https://")) {
        document.mistake("modules.edgeHub.httpServer", "must begin with https:// (several are separated by commas)");
    }
    if !addresses(&document.text("modules.edgeHub.websocket.server")).iter().all(|server| is_host_port(server)) {
        document.mistake("modules.edgeHub.websocket.server", "must be host:port (several are separated by commas)");
    }
    for key in ["tlsCaFile", "tlsCertFile", "tlsPrivateKeyFile"] {
        absolute(document, &format!("modules.edgeHub.{key}"));
    }
    for key in ["messageQPS", "messageBurst", "heartbeat", "websocket.handshakeTimeout", "websocket.writeDeadline"] {
        let path = format!("modules.edgeHub.{key}");
        if document.number(&path) < 0 {
            document.mistake(&path, "must not be negative");
        }
    }
}

fn absolute(document: &mut Document, path: &str) {
    let file = document.text(path);
    if !file.starts_with('/') {
        document.mistake(path, &format!("{file:?} is no absolute path"));
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::Config;

    #[test]
    fn each_mistake_is_found_at_its_place() {
        for (text, place) in [
            ("database: {dataSource: \"\"}", "database.dataSource"),
            ("modules: {edged: {nodeIP: 1.2.3}}", "modules.edged.nodeIP"),
            ("modules: {edged: {rootDirectory: data}}", "modules.edged.rootDirectory"),
            ("modules: {edged: {nodeLabels: {rack: 7}}}", "modules.edged.nodeLabels.rack"),
            ("modules: {edged: {tailoredKubeletConfig: {cgroupDriver: x}}}", "cgroupDriver"),
            (
                "modules: {edged: {tailoredKubeletConfig: {containerRuntimeEndpoint: \"tcp://h:1\"}}}",
                "containerRuntimeEndpoint",
            ),
            ("modules: {edged: {tailoredKubeletConfig: {syncFrequency: \"60\"}}}", "syncFrequency"),
            (
                "modules: {edged: {tailoredKubeletConfig: {imageGCLowThresholdPercent: 90}}}",
                "imageGCHighThresholdPercent",
            ),
            ("modules: {edged: {tailoredKubeletConfig: {address: localhost}}}", "tailoredKubeletConfig.address"),
            ("modules: {edged: {tailoredKubeletConfig: {readOnlyPort: 70000}}}", "tailoredKubeletConfig.readOnlyPort"),
            ("modules: {edged: {tailoredKubeletConfig: {clusterDNS: [dns.local]}}}", "clusterDNS"),
            ("modules: {edged: {tailoredKubeletConfig: {registerWithTaints: [{key: a}]}}}", "registerWithTaints[0]"),
            ("modules: {edgeHub: {websocket: {enable: no}, quic: {enable: yes}}}", "modules.edgeHub.quic"),
            ("modules: {edgeHub: {websocket: {enable: no}}}", "modules.edgeHub"),
            ("modules: {edgeHub: {tlsCaFile: ca.crt}}", "modules.edgeHub.tlsCaFile"),
            ("modules: {eventBus: {mqttMode: 3}}", "modules.eventBus.mqttMode"),
        ] {
            let error = Config::parse(text, Path::new("edgecore.yaml")).map(|_| ()).expect_err(text).to_string();
            assert!(error.contains(&format!("{place}: ")), "{text}: {error}");
            assert_eq!(error.lines().count(), 2, "one mistake, one line: {error}");
        }
    }
}
