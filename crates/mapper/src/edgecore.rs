//! The way to edgecore: registers there, again whenever it has been away, and tells it what devices report.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use api::mapper::Config;
use dmi::v1beta1::device_manager_service_client::DeviceManagerServiceClient;
use dmi::v1beta1::{
    DeviceStatus, MapperInfo, MapperRegisterRequest, ReportDeviceStatesRequest, ReportDeviceStatusRequest, Twin,
};
use link::backoff::Backoff;
use prost::Message;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use tonic::{Code, Status};
use tracing::{debug, info, warn};

use crate::device::Id;
use crate::driver::Driver;
use crate::outbox::{News, Outbox, Sender};
use crate::registry::Registry;

/// How long edgecore may take for a call.
const CALL_LIMIT: Duration = Duration::from_secs(10);
/// Waits between tries to register.
const FIRST_WAIT: Duration = Duration::from_millis(200);
const LONGEST_WAIT: Duration = Duration::from_secs(10);
/// How often the socket is looked at: another one means another edgecore.
const LOOK: Duration = Duration::from_secs(1);
/// The longest list of devices.
const MAX_ANSWER: usize = 32 << 20;
/// Reports on their way at once, each of another device.
const MAX_CALLS: usize = 8;
/// Of one call.
const MAX_TWINS: usize = 100;
const MAX_BYTES: usize = 1 << 20;

type Client = DeviceManagerServiceClient<Channel>;

/// Edgecore, as a mapper sees it.
pub(crate) struct Edgecore<D: Driver> {
    pub config: Config,
    pub registry: Arc<Registry<D>>,
    pub outbox: Arc<Outbox>,
}

/// Why nothing can be told any more.
enum Lost {
    Stopped,
    /// Another socket is there, or none.
    Socket,
    Call(Status),
}

/// What came of news.
enum Outcome {
    Told(Told),
    /// Edgecore did not answer.
    Lost(Status),
}

/// What edgecore has answered, if it has not taken all.
#[derive(Default)]
struct Told {
    /// What is wrong, each with the reason.
    refused: Vec<(String, String)>,
    /// What could not be taken now, and why.
    failed: News,
    why: Option<Status>,
}

impl<D: Driver> Edgecore<D> {
    /// Until stopped.
    pub async fn run(self, stopping: &CancellationToken) {
        let mut backoff = Backoff::new(FIRST_WAIT, LONGEST_WAIT);
        let mut absent = false;
        loop {
            let socket = identity(&self.config.edgecore);
            let Some(registered) = stopping.run_until_cancelled(self.register()).await else { return };
            match registered {
                Ok(client) => {
                    info!(mapper = %self.config.name, protocol = %self.config.protocol, "registered with edgecore");
                    absent = false;
                    backoff.reset();
                    match self.tell(client, socket, stopping).await {
                        Lost::Stopped => return,
                        Lost::Socket => info!("edgecore has another socket: registering again"),
                        Lost::Call(error) => warn!(%error, "edgecore does not answer: registering again"),
                    }
                    self.outbox.take_all_back();
                }
                Err(error) if absent => debug!(%error, "still not registered with edgecore"),
                Err(error) => {
                    let socket = self.config.edgecore.display();
                    warn!(%socket, %error, "cannot register with edgecore; trying again until it is there, and devices go on");
                    absent = true;
                }
            }
            let wait = backoff.next_wait();
            if stopping.run_until_cancelled(tokio::time::sleep(wait)).await.is_none() {
                return;
            }
        }
    }

    async fn register(&self) -> Result<Client, Status> {
        let path = self.config.edgecore.to_string_lossy();
        let channel = dmi::socket::channel(&path).map_err(|error| Status::invalid_argument(error.to_string()))?;
        let mut client = DeviceManagerServiceClient::new(channel).max_decoding_message_size(MAX_ANSWER);
        let request = MapperRegisterRequest {
            with_data: true,
            mapper: Some(MapperInfo {
                name: self.config.name.clone(),
                version: self.config.version.clone(),
                api_version: self.config.api_version.clone(),
                protocol: self.config.protocol.clone(),
                address: self.config.socket.to_string_lossy().into_owned().into_bytes(),
                state: "ok".to_owned(),
            }),
        };
        // What edgecore says meanwhile is newer than its answer.
        let listing = self.registry.begin_listing();
        let answer = limited(client.mapper_register(request)).await?;
        listing.end(answer);
        Ok(client)
    }

    /// Tells what waits, until edgecore is lost.
    async fn tell(&self, client: Client, socket: Option<Identity>, stopping: &CancellationToken) -> Lost {
        let mut calls: JoinSet<(Sender, Outcome)> = JoinSet::new();
        let mut look = tokio::time::interval(LOOK);
        loop {
            while calls.len() < MAX_CALLS {
                let Some((sender, news)) = self.outbox.take() else { break };
                let client = client.clone();
                calls.spawn(async move {
                    let outcome = send(client, &sender.id, news).await;
                    (sender, outcome)
                });
            }
            tokio::select! {
                Some(Ok((sender, outcome))) = calls.join_next() => match outcome {
                    Outcome::Told(Told { refused, why: None, .. }) => self.outbox.told(&sender, refused),
                    Outcome::Told(Told { refused, failed, why: Some(error) }) => {
                        self.outbox.later(&sender, &failed, refused, &error.to_string());
                    }
                    Outcome::Lost(error) => return Lost::Call(error),
                },
                () = self.outbox.due(), if calls.len() < MAX_CALLS => {}
                _ = look.tick() => {
                    if identity(&self.config.edgecore) != socket {
                        return Lost::Socket;
                    }
                }
                () = stopping.cancelled() => return Lost::Stopped,
            }
        }
    }
}

/// The state, then the values in calls of bounded size. What fails keeps nothing else away.
async fn send(mut client: Client, id: &Id, news: News) -> Outcome {
    match send_all(&mut client, id, news).await {
        Ok(told) => Outcome::Told(told),
        Err(lost) => Outcome::Lost(lost),
    }
}

async fn send_all(client: &mut Client, id: &Id, news: News) -> Result<Told, Status> {
    let (device_name, device_namespace) = (id.name.clone(), id.namespace.clone());
    let mut told = Told::default();
    if let Some(state) = news.state {
        let request = ReportDeviceStatesRequest { device_name, device_namespace, state: state.to_owned() };
        match limited(client.report_device_states(request)).await {
            Ok(_) => {}
            Err(error) if error.code() == Code::InvalidArgument => {
                told.refused.push(("the state".to_owned(), error.message().to_owned()));
            }
            Err(error) => {
                told.why = Some(answer(error)?);
                told.failed.state = Some(state);
            }
        }
    }
    for twins in calls(news.twins.into_values()) {
        match status(client, id, twins.clone()).await {
            Ok(()) => {}
            // What it does not refuse edgecore has stored: said again it would be there twice.
            Err(error) if error.code() == Code::InvalidArgument => {
                told.refused.extend(reasons(&twins, error.message()));
            }
            Err(error) => {
                told.why = Some(answer(error)?);
                told.failed.twins.extend(twins.into_iter().map(|twin| (twin.property_name.clone(), twin)));
            }
        }
    }
    Ok(told)
}

/// What a refusal says of each property, for the log. Edgecore gives the reasons one after the other, each with the property's name.
fn reasons(twins: &[Twin], message: &str) -> BTreeMap<String, String> {
    let mut by_name = BTreeMap::<String, String>::new();
    for reason in message.split("; ") {
        let is_named = |twin: &&Twin| reason.starts_with(&format!("property {:?}:", twin.property_name));
        let named = twins.iter().find(is_named).or(twins.first().filter(|_| twins.len() == 1));
        let said = by_name.entry(named.map_or("one of several", |twin| &twin.property_name).to_owned()).or_default();
        if !said.is_empty() {
            said.push_str("; ");
        }
        said.push_str(reason);
    }
    by_name
}

async fn status(client: &mut Client, id: &Id, twins: Vec<Twin>) -> Result<(), Status> {
    let request = ReportDeviceStatusRequest {
        device_name: id.name.clone(),
        device_namespace: id.namespace.clone(),
        reported_device: Some(DeviceStatus { twins, ..DeviceStatus::default() }),
    };
    limited(client.report_device_status(request)).await.map(drop)
}

fn calls(twins: impl Iterator<Item = Twin>) -> Vec<Vec<Twin>> {
    let (mut calls, mut bytes) = (Vec::<Vec<Twin>>::new(), 0);
    for twin in twins {
        let size = twin.encoded_len();
        match calls.last_mut() {
            Some(call) if call.len() < MAX_TWINS && bytes + size <= MAX_BYTES => {
                bytes += size;
                call.push(twin);
            }
            _ => {
                bytes = size;
                calls.push(vec![twin]);
            }
        }
    }
    calls
}

/// An answer of edgecore has no source; one of the connection has, and is an error.
fn answer(error: Status) -> Result<Status, Status> {
    match std::error::Error::source(&error) {
        Some(_) => Err(error),
        None => Ok(error),
    }
}

async fn limited<T>(call: impl Future<Output = Result<tonic::Response<T>, Status>>) -> Result<T, Status> {
    match tokio::time::timeout(CALL_LIMIT, call).await {
        Ok(answer) => answer.map(tonic::Response::into_inner),
        Err(late) => Err(Status::from_error(Box::new(late))),
    }
}

type Identity = (u64, u64, i64, i64);

/// Which socket it is; a number may be used again, its time of change is another then.
fn identity(path: &Path) -> Option<Identity> {
    let found = std::fs::metadata(path).ok()?;
    Some((found.dev(), found.ino(), found.ctime(), found.ctime_nsec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn twin(bytes: usize) -> Twin {
        Twin { property_name: "x".repeat(bytes), ..Twin::default() }
    }

    #[test]
    fn a_call_is_bounded() {
        let small = calls(std::iter::repeat_n(twin(10), 250));
        assert_eq!(small.iter().map(Vec::len).collect::<Vec<_>>(), [100, 100, 50]);
        let large = calls(std::iter::repeat_n(twin(MAX_BYTES / 3), 5));
        assert_eq!(large.iter().map(Vec::len).collect::<Vec<_>>(), [2, 2, 1]);
        assert_eq!(calls(std::iter::once(twin(MAX_BYTES * 2))).len(), 1);
    }

    #[test]
    fn a_refusal_is_told_of_the_property_that_it_names() {
        let twins = [twin(1), twin(2), twin(3)];
        let said = r#"property "xx": "x; y" is no int; property "x": "xx" is no int; and 2 more"#;
        let expected = [("one of several", "y\" is no int; and 2 more"), ("x", r#"property "x": "xx" is no int"#)];
        let expected = expected.into_iter().chain([("xx", r#"property "xx": "x"#)]);
        assert!(reasons(&twins, said).iter().map(|(name, why)| (name.as_str(), why.as_str())).eq(expected));
        let alone = BTreeMap::from([("x".to_owned(), "no; never".to_owned())]);
        assert_eq!(reasons(&twins[..1], "no; never"), alone);
    }

    #[tokio::test(start_paused = true)]
    async fn what_edgecore_says_is_no_lost_connection() {
        assert!(answer(Status::unavailable("its disk is full")).is_ok());
        let broken = Status::from_error(Box::new(std::io::Error::other("broken pipe")));
        assert!(answer(broken).is_err());
        let late = limited(std::future::pending::<Result<tonic::Response<()>, _>>()).await.expect_err("no answer");
        assert!(answer(late).is_err());
    }
}
