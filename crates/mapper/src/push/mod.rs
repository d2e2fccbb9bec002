//! Where a property goes besides edgecore: `pushMethod` with HTTP or MQTT.
//!
//! A target, an HTTP server or an MQTT broker, has one queue for all properties that go there. While it is away the queue fills, and
//! then the oldest is dropped. A target without a property ends.

mod http;
mod mqtt_broker;
mod names;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use dmi::v1beta1::PushMethod;
use mqtt::{Publish, Qos};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::warn;

use crate::device::Id;
use crate::slot::Reading;

/// Targets at once.
const MAX_TARGETS: usize = 64;
/// How long an HTTP server may take when its `timeout` is 0, and at most.
const USUAL_TIMEOUT: Duration = Duration::from_secs(10);
const LONGEST_TIMEOUT: Duration = Duration::from_secs(60);

/// All targets.
pub(crate) struct Pusher {
    targets: Mutex<HashMap<String, Weak<Target>>>,
    tasks: TaskTracker,
    stopping: CancellationToken,
}

enum Target {
    Http(http::Server),
    Mqtt(mqtt::Client),
}

/// One way of one property.
pub(crate) struct Push {
    device: Id,
    target: Arc<Target>,
    how: How,
}

enum How {
    Http { url: ::http::Uri, timeout: Duration },
    Mqtt { topic: String, qos: Qos, retain: bool },
}

/// A way that cannot be gone.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
enum PushError {
    #[error("pushMethod.{0} is not supported by this mapper: use http or mqtt")]
    Unsupported(&'static str),
    #[error("pushMethod.{0} has {1:?}: TLS is not supported, send to something in the same host or network")]
    Tls(&'static str, String),
    #[error("pushMethod.{0} has {1:?}, which is no {2}")]
    Address(&'static str, String, &'static str),
    #[error("properties are pushed to {MAX_TARGETS} servers already, as many as a mapper takes")]
    Full,
    #[error("pushMethod.mqtt: the client of {0} cannot start: {1}")]
    Start(String, String),
}

impl Pusher {
    pub fn new(stopping: CancellationToken) -> Self {
        Self { targets: Mutex::default(), tasks: TaskTracker::new(), stopping }
    }

    /// All queues have ended, after the mapper was told to stop.
    pub async fn ended(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// The ways of a property. What cannot be is logged, once for this call.
    pub fn pushes(&self, device: &Id, property: &str, method: &PushMethod) -> Vec<Push> {
        let http =
            method.http.as_ref().map(|http| self.http(&http.hostname, http.port, &http.requestpath, http.timeout));
        let mqtt = method.mqtt.as_ref().map(|mqtt| self.mqtt(&mqtt.address, &mqtt.topic, mqtt.qos, mqtt.retained));
        let database = method.db_method.as_ref().map(|_| Err(PushError::Unsupported("dbMethod")));
        let otel = method.otel.as_ref().map(|_| Err(PushError::Unsupported("otel")));
        let pushes = [http, mqtt, database, otel].into_iter().flatten().filter_map(|push| match push {
            Ok((target, how)) => Some(Push { device: device.clone(), target, how }),
            Err(error) => {
                warn!(%device, property, %error, "a property is not pushed");
                None
            }
        });
        pushes.collect()
    }

    fn http(&self, host: &str, port: i64, path: &str, timeout: i64) -> Result<(Arc<Target>, How), PushError> {
        let wrong = || PushError::Address("http", format!("{host}:{port}{path}"), "URL");
        if host.starts_with("https://") {
            return Err(PushError::Tls("http", host.to_owned()));
        }
        let host = host.strip_prefix("http://").unwrap_or(host);
        let port = u16::try_from(port).map_err(|_| wrong())?;
        let server = if port == 0 { host.to_owned() } else { format!("{host}:{port}") };
        let slash = if path.starts_with('/') { "" } else { "/" };
        let url: ::http::Uri = format!("http://{server}{slash}{path}").parse().map_err(|_| wrong())?;
        if url.host().is_none_or(str::is_empty) {
            return Err(wrong());
        }
        let timeout = match u64::try_from(timeout) {
            Ok(0) | Err(_) => USUAL_TIMEOUT,
            Ok(seconds) => Duration::from_secs(seconds).min(LONGEST_TIMEOUT),
        };
        let target = self.target(format!("http://{server}"), |name| {
            Ok(Target::Http(http::Server::start(name, &self.tasks, self.stopping.child_token())))
        })?;
        Ok((target, How::Http { url, timeout }))
    }

    fn mqtt(&self, address: &str, topic: &str, qos: i32, retain: bool) -> Result<(Arc<Target>, How), PushError> {
        let (host, port) = mqtt_broker::address(address)?;
        if !mqtt::topic::is_topic(topic) {
            return Err(PushError::Address("mqtt", topic.to_owned(), "topic"));
        }
        let qos = u8::try_from(qos).ok().and_then(Qos::from_number);
        let qos = qos.ok_or_else(|| PushError::Address("mqtt", "its qos".to_owned(), "0, 1 or 2"))?;
        let target = self.target(format!("mqtt://{host}:{port}"), |name| {
            let client = mqtt_broker::connect(&host, port);
            client.map(Target::Mqtt).map_err(|error| PushError::Start(name.to_owned(), error.to_string()))
        })?;
        Ok((target, How::Mqtt { topic: topic.to_owned(), qos, retain }))
    }

    fn target(
        &self,
        name: String,
        start: impl FnOnce(&str) -> Result<Target, PushError>,
    ) -> Result<Arc<Target>, PushError> {
        let mut targets = self.targets.lock().unwrap_or_else(PoisonError::into_inner);
        targets.retain(|_, target| target.strong_count() > 0);
        if let Some(target) = targets.get(&name).and_then(Weak::upgrade) {
            return Ok(target);
        }
        if targets.len() >= MAX_TARGETS {
            return Err(PushError::Full);
        }
        let target = Arc::new(start(&name)?);
        targets.insert(name, Arc::downgrade(&target));
        Ok(target)
    }
}

impl Push {
    /// Hands a reading over to the queue. Bodies are those of KubeEdge's mapper framework, with the time in UTC.
    pub fn send(&self, property: &str, reading: &Reading) {
        let time = reading.at.strftime("%Y-%m-%d %H:%M:%S");
        match (&*self.target, &self.how) {
            (Target::Http(server), How::Http { url, timeout }) => {
                let body = format!("{}={}&time={}", form(property), form(&reading.value), form(&time.to_string()));
                server.put(http::Post { url: url.clone(), body: body.into(), timeout: *timeout });
            }
            (Target::Mqtt(client), How::Mqtt { topic, qos, retain }) => {
                let payload = format!("time is {time}  {topic}: {}", reading.value).into();
                let publish = Publish { topic: topic.clone(), payload, qos: *qos, retain: *retain };
                if let Err(error) = client.publish(publish) {
                    warn!(device = %self.device, property, %error, "a value cannot be pushed");
                }
            }
            // A target is of the kind that it was made for.
            _ => {}
        }
    }
}

/// As a form has it.
fn form(text: &str) -> impl std::fmt::Display + '_ {
    const KEPT: &percent_encoding::AsciiSet =
        &percent_encoding::NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~').remove(b':');
    percent_encoding::utf8_percent_encode(text, KEPT)
}
