//! `modules.eventBus` of `edgecore.yaml`.

use std::net::SocketAddr;
use std::path::PathBuf;

use super::Config;
use crate::document::Document;

/// What EventBus is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventBus {
    /// Where the broker inside edgecore listens; `None` when there is none.
    pub internal: Option<SocketAddr>,
    /// The broker beside edgecore; `None` when none is used.
    pub external: Option<ExternalBroker>,
    /// With which quality of service edgecore's own messages go, 0 to 2 (inside edgecore).
    pub qos: u8,
    /// Whether the broker inside edgecore keeps the last of them on each topic.
    pub retain: bool,
    /// Messages that wait for one client of the broker inside edgecore.
    pub queue: usize,
}

/// A broker beside edgecore.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExternalBroker {
    /// Its host.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// Our name there; empty for one that is made up.
    pub client_id: String,
    /// Empty for none.
    pub username: String,
    /// The password of that user.
    pub password: String,
}

impl Config {
    /// `modules.eventBus`; `None` when it is switched off.
    pub fn event_bus(&self) -> Option<EventBus> {
        let at = |key: &str| format!("modules.eventBus.{key}");
        let text = |key: &str| self.document.text(&at(key));
        if !self.document.flag(&at("enable")) {
            return None;
        }
        let mode = self.document.number(&at("mqttMode"));
        let external = || {
            let (host, port) = external(&text("mqttServerExternal"))?;
            let (username, password) = (text("mqttUsername"), text("mqttPassword"));
            Some(ExternalBroker { host, port, client_id: text("mqttSubClientID"), username, password })
        };
        Some(EventBus {
            internal: (mode < 2).then(|| internal(&text("mqttServerInternal"))).flatten(),
            external: if mode > 0 { external() } else { None },
            qos: u8::try_from(self.document.number(&at("mqttQOS"))).unwrap_or_default(),
            retain: self.document.flag(&at("mqttRetain")),
            queue: usize::try_from(self.document.number(&at("mqttSessionQueueSize"))).unwrap_or(1),
        })
    }

    /// Where mappers register: `dmi.sock` in the folder `modules.deviceTwin.dmiSockPath`; `None` when DeviceTwin is switched off.
    pub fn dmi_socket(&self) -> Option<PathBuf> {
        let folder = PathBuf::from(self.document.text("modules.deviceTwin.dmiSockPath"));
        self.document.flag("modules.deviceTwin.enable").then(|| folder.join("dmi.sock"))
    }
}

/// Remembers every mistake.
pub(super) fn validate(document: &mut Document) {
    let at = |key: &str| format!("modules.eventBus.{key}");
    if !document.flag(&at("enable")) {
        return;
    }
    let mode = document.number(&at("mqttMode"));
    if !(0..=2).contains(&mode) {
        return document.mistake(&at("mqttMode"), "must be 0 (internal), 1 (both) or 2 (external)");
    }
    if !(0..=2).contains(&document.number(&at("mqttQOS"))) {
        document.mistake(&at("mqttQOS"), "must be 0, 1 or 2");
    }
    if !(1..=100_000).contains(&document.number(&at("mqttSessionQueueSize"))) {
        document.mistake(&at("mqttSessionQueueSize"), "must be 1 to 100000 messages");
    }
    let own = document.text(&at("mqttServerInternal"));
    if mode < 2 && internal(&own).is_none() {
        let why =
            format!("{own:?} is no address of this machine: write tcp://IP:PORT, for example tcp://127.0.0.1:1883");
        document.mistake(&at("mqttServerInternal"), &why);
    }
    let other = document.text(&at("mqttServerExternal"));
    if mode > 0 && external(&other).is_none() {
        let why =
            format!("{other:?} is no address of a broker: write tcp://HOST:PORT, for example tcp://127.0.0.1:1883");
        document.mistake(&at("mqttServerExternal"), &why);
    }
    if mode == 1 && own == other {
        let why = "is the address of the broker inside edgecore, too: give mqttServerInternal another port, for example tcp://127.0.0.1:1884";
        document.mistake(&at("mqttServerExternal"), why);
    }
    if mode > 0 && (document.flag(&at("eventBusTLS.enable")) || is_tls(&other)) {
        let why = "TLS to a broker beside edgecore is not part of this version: use a broker on this machine over tcp://, or the one inside edgecore (mqttMode: 0)";
        document.mistake(&at("eventBusTLS.enable"), why);
    }
}

fn is_tls(url: &str) -> bool {
    ["ssl://", "tls://", "mqtts://"].iter().any(|scheme| url.starts_with(scheme))
}

fn internal(url: &str) -> Option<SocketAddr> {
    let rest = url.strip_prefix("tcp://").or_else(|| url.strip_prefix("mqtt://"))?;
    rest.strip_prefix("localhost").map_or_else(|| rest.parse().ok(), |port| format!("127.0.0.1{port}").parse().ok())
}

fn external(url: &str) -> Option<(String, u16)> {
    let (_, rest) = url.split_once("://")?;
    let (host, port) = rest.trim_end_matches('/').rsplit_once(':')?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    (!host.is_empty()).then_some((host.to_owned(), port.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn config(text: &str) -> Result<Config, String> {
        let text = format!("modules: {{edged: {{hostnameOverride: edge}}, eventBus: {{{text}}}}}");
        Config::parse(&text, Path::new("edgecore.yaml")).map_err(|error| error.to_string())
    }

    #[test]
    fn without_a_word_the_broker_is_inside() {
        let bus = config("").expect("valid").event_bus().expect("on");
        assert_eq!((bus.internal, bus.external), (Some(SocketAddr::from(([127, 0, 0, 1], 1883))), None));
        assert_eq!(config("enable: false").expect("valid").event_bus(), None);
    }

    #[test]
    fn upstreams_modes() {
        let both = "mqttMode: 1, mqttServerInternal: tcp://localhost:1884, mqttServerExternal: 'tcp://broker:1883', mqttUsername: u";
        let bus = config(both).expect("valid").event_bus().expect("on");
        assert_eq!(bus.internal, Some(SocketAddr::from(([127, 0, 0, 1], 1884))));
        let external = bus.external.expect("named");
        assert_eq!((external.host.as_str(), external.port, external.username.as_str()), ("broker", 1883, "u"));
        let bus = config("mqttMode: 2").expect("valid").event_bus().expect("on");
        assert!(bus.internal.is_none() && bus.external.is_some_and(|broker| broker.host == "127.0.0.1"));
    }

    #[test]
    fn mistakes_name_the_cure() {
        for (text, why) in [
            ("mqttMode: 3", "must be 0 (internal), 1 (both) or 2 (external)"),
            ("mqttMode: 0, mqttServerInternal: 'tcp://broker:1883'", "tcp://IP:PORT"),
            ("mqttMode: 2, mqttServerExternal: broker", "tcp://HOST:PORT"),
            ("mqttMode: 1", "give mqttServerInternal another port"),
            ("mqttMode: 2, mqttServerExternal: 'ssl://broker:8883'", "not part of this version"),
            ("mqttQOS: 5", "must be 0, 1 or 2"),
        ] {
            let told = config(text).expect_err(text);
            assert!(told.contains(why), "{text}: {told}");
        }
    }
}
