//! A mapper between a device and the cluster, with real programs: whoever is killed and in whatever order they start, each hears what it
//! missed.
//!
//! It needs root, the packages that `cargo xtask test` installs, and the programs that it builds.

use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use serde_json::Value;
use testkit::site::Site;

const STATUS: &str = "/apis/devices.kubeedge.io/v1beta1/namespaces/default/devicestatuses/room";
const EXAMPLE: &str = "../../examples/room-virtual.yaml";

/// The mapper of `examples/mapper-virtual.yaml`, which ends with the test.
struct Mapper {
    config: PathBuf,
    process: Option<Child>,
}

impl Mapper {
    fn new(dir: &Path, edgecore: &Path) -> Self {
        let socket = edgecore.with_file_name("virtual.sock");
        let example = include_str!("../../../examples/mapper-virtual.yaml");
        let text = example.replace("/etc/kubeedge/virtual.sock", socket.to_str().expect("path"));
        let text = text.replace("/etc/kubeedge/dmi.sock", edgecore.to_str().expect("path"));
        let config = dir.join("mapper.yaml");
        std::fs::write(&config, text).expect("written");
        Self { config, process: None }
    }

    fn start(&mut self, site: &Site) {
        let log = std::fs::File::options().create(true).append(true).open(self.config.with_extension("log"));
        let mut command = site.program("mapper");
        command.arg("--config").arg(&self.config).stdin(Stdio::null()).stderr(log.expect("log"));
        self.process = Some(command.spawn().expect("the mapper that `cargo xtask test` builds"));
    }

    fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().expect("killed");
            process.wait().expect("ended");
        }
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.config.with_extension("log")).unwrap_or_default()
    }
}

impl Drop for Mapper {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.log());
        }
        self.kill();
    }
}

fn twin<'a>(status: &'a Value, property: &str) -> Option<&'a str> {
    let twins = status["status"]["twins"].as_array()?;
    twins.iter().find(|twin| twin["propertyName"] == property)?["reported"]["value"].as_str()
}

fn wish(site: &Site, target: u32) {
    let patch = format!(r#"[{{"op":"replace","path":"/spec/properties/1/desired/value","value":"{target}"}}]"#);
    site.ask(&["patch", "device", "room", "--type=json", "-p", &patch]);
}

fn wait_target(site: &Site, target: &str) {
    site.wait(&format!("target {target}"), |status| twin(status, "target") == Some(target), STATUS);
}

#[test]
fn a_mapper_and_its_device_survive_whoever_is_killed() {
    let mut site = Site::start(62);
    let dir = tempfile::tempdir().expect("folder");
    let mut mapper = Mapper::new(dir.path(), &site.deployment().dmi_socket(1));
    // The device is there before its mapper.
    site.ask(&["apply", "-f", EXAMPLE]);
    mapper.start(&site);
    wait_target(&site, "21");
    let status = site.wait("the temperature", |status| twin(status, "temperature").is_some(), STATUS);
    let temperature: f64 = twin(&status, "temperature").expect("told").parse().expect("a number");
    assert!((15.0..=25.0).contains(&temperature), "{status}");
    site.wait("the state", |status| status["status"]["state"] == "online", STATUS);

    // What is wished while the mapper is away it hears when it is back.
    mapper.kill();
    wish(&site, 22);
    mapper.start(&site);
    wait_target(&site, "22");

    // The mapper goes on while edgecore is away, and hears afterwards what was wished meanwhile.
    site.kill_edge();
    wish(&site, 23);
    site.deployment().start_edgecore(1).expect("started");
    wait_target(&site, "23");

    // A value out of the model's bounds does not reach the device.
    wish(&site, 99);
    site.until("the refusal", || {
        mapper.log().lines().any(|line| line.contains("99 is out of bounds for property target"))
    });
    let status = site.ask(&["get", "devicestatus", "room", "-o", "json"]);
    let status: Value = serde_json::from_str(&status).expect("JSON");
    assert_eq!(twin(&status, "target"), Some("23"), "{status}");
    wish(&site, 24);
    wait_target(&site, "24");

    site.ask(&["delete", "-f", EXAMPLE]);
    site.until("the end of its status", || !site.kubectl(&["get", "devicestatus", "room"]).status.success());
}
