//! Brings one mapper to what it has to know.

use std::collections::HashMap;
use std::time::Duration;

use dmi::v1beta1 as proto;
use dmi::v1beta1::device_mapper_service_client::DeviceMapperServiceClient;
use edged::events::{EventType, Recorder};
use link::backoff::Backoff;
use store::StoreError;
use tokio::sync::watch;
use tonic::transport::Channel;
use tonic::{Code, Status};
use tracing::{debug, error, info, warn};

use super::registration::{Known, Registration, Rows, Told};
use super::wanted::{Wanted, digest};

/// How long a mapper may take for a call (KubeEdge v1.23).
const CALL_LIMIT: Duration = Duration::from_secs(10);
/// Waits after a call that failed.
const FIRST_WAIT: Duration = Duration::from_millis(250);
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// Calls between two notes of what has been told.
const ROUND: usize = 64;

/// One call to a mapper.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Call {
    CreateModel(String, proto::DeviceModel),
    UpdateModel(String, proto::DeviceModel),
    Register(String, Box<proto::Device>),
    Update(String, Box<proto::Device>),
    Remove(String),
    RemoveModel(String),
}

type Client = DeviceMapperServiceClient<Channel>;

/// Goes on as long as the mapper is the one of its protocol.
pub(super) async fn drive(rows: Rows, mut mapper: Registration, mut changed: watch::Receiver<()>, recorder: Recorder) {
    if !mapper.with_data {
        return;
    }
    let client = match dmi::socket::channel(&mapper.address) {
        Ok(channel) => DeviceMapperServiceClient::new(channel),
        // It was looked at when the mapper registered.
        Err(error) => return error!(socket = mapper.address, %error, "the mapper cannot be called"),
    };
    let mut backoff = Backoff::new(FIRST_WAIT, LONGEST_WAIT);
    let mut complaints = Complaints::new(recorder);
    loop {
        changed.mark_unchanged();
        let is_done = match round(&rows, &mut mapper, &client, &mut complaints).await {
            Ok(done) => done,
            Err(error) => {
                error!(protocol = mapper.protocol, %error, "what the mapper has been told cannot be noted; tried again");
                false
            }
        };
        if is_done {
            backoff.reset();
        }
        tokio::select! {
            news = changed.changed() => if news.is_err() { return },
            () = tokio::time::sleep(backoff.next_wait()), if !is_done => {}
        }
    }
}

/// Makes the calls that are due. Whether nothing is left.
async fn round(
    rows: &Rows,
    mapper: &mut Registration,
    client: &Client,
    complaints: &mut Complaints,
) -> Result<bool, StoreError> {
    loop {
        let wanted = Wanted::read(rows.database(), &mapper.protocol)?;
        complaints.left_out(&mapper.protocol, &wanted);
        let due = due(&mapper.told, &wanted);
        let calls: Vec<Call> = due.into_iter().filter(|call| !complaints.has_refused(call)).take(ROUND).collect();
        if calls.is_empty() {
            return Ok(complaints.end_of_round());
        }
        // Before: of what is not known whether it got there it has to be said that it is gone, once it is.
        let attempts = calls.iter().filter(|call| note_attempt(&mut mapper.told, call)).count();
        if attempts > 0 {
            rows.put(mapper).await?;
        }
        let mut is_reachable = true;
        for call in calls {
            match make(client.clone(), call.clone()).await {
                Ok(()) => {
                    debug!(
                        protocol = mapper.protocol,
                        call = call.name(),
                        object = call.object(),
                        "the mapper has taken it"
                    );
                    note_success(&mut mapper.told, &call);
                }
                Err(status) => {
                    complaints.refused(&mapper.protocol, call, &status, &wanted);
                    if is_unreachable(status.code()) {
                        is_reachable = false;
                        break;
                    }
                }
            }
        }
        rows.put(mapper).await?;
        if !is_reachable {
            complaints.end_of_round();
            return Ok(false);
        }
        complaints.reached(&mapper.protocol);
    }
}

/// What has to be said to bring a mapper that knows `told` to what is `wanted`: models before their devices, and after them when they go.
pub(super) fn due(told: &Told, wanted: &Wanted) -> Vec<Call> {
    let mut calls = Vec::new();
    for (name, model) in &wanted.models {
        match told.models.get(name) {
            Some(Known::Digest(known)) if *known == digest(model) => {}
            Some(Known::Digest(_)) => calls.push(Call::UpdateModel(name.clone(), model.clone())),
            known => {
                calls.push(Call::CreateModel(name.clone(), model.clone()));
                // One that knew it already leaves it as it was.
                calls.extend(known.map(|_| Call::UpdateModel(name.clone(), model.clone())));
            }
        }
    }
    for (name, device) in &wanted.devices {
        match told.devices.get(name) {
            Some(Known::Digest(known)) if *known == digest(device) => {}
            Some(Known::Digest(_)) => calls.push(Call::Update(name.clone(), Box::new(device.clone()))),
            known => {
                calls.push(Call::Register(name.clone(), Box::new(device.clone())));
                calls.extend(known.map(|_| Call::Update(name.clone(), Box::new(device.clone()))));
            }
        }
    }
    // One that cannot be described any more is not gone.
    let is_there = |name: &String| {
        wanted.devices.contains_key(name) || wanted.left_out.iter().any(|(left_out, _)| left_out == name)
    };
    calls.extend(told.devices.keys().filter(|name| !is_there(name)).cloned().map(Call::Remove));
    if wanted.left_out.is_empty() {
        let gone = told.models.keys().filter(|name| !wanted.models.contains_key(*name));
        calls.extend(gone.cloned().map(Call::RemoveModel));
    }
    calls
}

fn note_attempt(told: &mut Told, call: &Call) -> bool {
    let (known, name) = match call {
        Call::CreateModel(name, _) => (&mut told.models, name),
        Call::Register(name, _) => (&mut told.devices, name),
        _ => return false,
    };
    known.insert(name.clone(), Known::Perhaps) != Some(Known::Perhaps)
}

fn note_success(told: &mut Told, call: &Call) {
    match call {
        Call::CreateModel(name, model) | Call::UpdateModel(name, model) => {
            told.models.insert(name.clone(), Known::Digest(digest(model)));
        }
        Call::Register(name, device) | Call::Update(name, device) => {
            told.devices.insert(name.clone(), Known::Digest(digest(device.as_ref())));
        }
        Call::Remove(name) => drop(told.devices.remove(name)),
        Call::RemoveModel(name) => drop(told.models.remove(name)),
    }
}

async fn make(mut client: Client, call: Call) -> Result<(), Status> {
    let split =
        |name: &str| name.split_once('/').map(|(space, name)| (space.to_owned(), name.to_owned())).unwrap_or_default();
    let calling = async {
        match call {
            Call::CreateModel(_, model) => {
                client.create_device_model(proto::CreateDeviceModelRequest { model: Some(model) }).await.map(drop)
            }
            Call::UpdateModel(_, model) => {
                client.update_device_model(proto::UpdateDeviceModelRequest { model: Some(model) }).await.map(drop)
            }
            Call::Register(_, device) => {
                client.register_device(proto::RegisterDeviceRequest { device: Some(*device) }).await.map(drop)
            }
            Call::Update(_, device) => {
                client.update_device(proto::UpdateDeviceRequest { device: Some(*device) }).await.map(drop)
            }
            Call::Remove(name) => {
                let (device_namespace, device_name) = split(&name);
                client.remove_device(proto::RemoveDeviceRequest { device_name, device_namespace }).await.map(drop)
            }
            Call::RemoveModel(name) => {
                let (model_namespace, model_name) = split(&name);
                client
                    .remove_device_model(proto::RemoveDeviceModelRequest { model_name, model_namespace })
                    .await
                    .map(drop)
            }
        }
    };
    let late = |_| Status::deadline_exceeded(format!("no answer within {} s", CALL_LIMIT.as_secs()));
    tokio::time::timeout(CALL_LIMIT, calling).await.map_err(late)?
}

impl Call {
    /// The name of the method.
    fn name(&self) -> &'static str {
        match self {
            Self::CreateModel(..) => "CreateDeviceModel",
            Self::UpdateModel(..) => "UpdateDeviceModel",
            Self::Register(..) => "RegisterDevice",
            Self::Update(..) => "UpdateDevice",
            Self::Remove(_) => "RemoveDevice",
            Self::RemoveModel(_) => "RemoveDeviceModel",
        }
    }

    /// What it is about.
    fn object(&self) -> &str {
        match self {
            Self::CreateModel(name, _) | Self::UpdateModel(name, _) | Self::RemoveModel(name) => name,
            Self::Register(name, _) | Self::Update(name, _) | Self::Remove(name) => name,
        }
    }
}

/// What is wrong with a mapper, said once as long as it is the same.
struct Complaints {
    recorder: Recorder,
    is_unreachable: bool,
    /// By object, what was said last.
    said: HashMap<String, String>,
    /// Calls that were refused in this round, and what was said in it.
    refused: Vec<Call>,
    now: HashMap<String, String>,
}

impl Complaints {
    fn new(recorder: Recorder) -> Self {
        let (said, now) = (HashMap::new(), HashMap::new());
        Self { recorder, is_unreachable: false, said, refused: Vec::new(), now }
    }

    fn has_refused(&self, call: &Call) -> bool {
        self.refused.contains(call)
    }

    /// Whether that has not been said yet of this object.
    fn is_new(&mut self, object: &str, reason: &str) -> bool {
        let known = [&self.said, &self.now].iter().any(|said| said.get(object).is_some_and(|said| said == reason));
        self.now.insert(object.to_owned(), reason.to_owned());
        !known
    }

    fn left_out(&mut self, protocol: &str, wanted: &Wanted) {
        for (device, reason) in &wanted.left_out {
            if self.is_new(device, reason) {
                warn!(device, protocol, reason, "the mapper does not get this device");
                self.record(
                    device,
                    wanted,
                    "NotForMapper",
                    format!("the mapper of {protocol:?} does not get this device: {reason}"),
                );
            }
        }
    }

    fn refused(&mut self, protocol: &str, call: Call, status: &Status, wanted: &Wanted) {
        let (reason, name) = (status.message(), call.object());
        if is_unreachable(status.code()) {
            if !std::mem::replace(&mut self.is_unreachable, true) {
                warn!(
                    protocol,
                    call = call.name(),
                    object = name,
                    reason,
                    "the mapper does not answer: does it run? Tried again"
                );
            }
            return;
        }
        if self.is_new(&format!("{} {name}", call.name()), reason) {
            warn!(protocol, call = call.name(), object = name, reason, "the mapper refuses; tried again");
            if matches!(call, Call::Register(..) | Call::Update(..)) {
                self.record(
                    name,
                    wanted,
                    "MapperRefused",
                    format!("the mapper of {protocol:?} does not take this device: {reason}"),
                );
            }
        }
        self.refused.push(call);
    }

    fn record(&self, device: &str, wanted: &Wanted, reason: &'static str, message: String) {
        if let (Some((namespace, name)), Some(uid)) = (device.split_once('/'), wanted.uids.get(device)) {
            self.recorder.device(namespace, name, uid, EventType::Warning, reason, message);
        }
    }

    fn reached(&mut self, protocol: &str) {
        if std::mem::replace(&mut self.is_unreachable, false) {
            info!(protocol, "the mapper answers again");
        }
    }

    /// Whether nothing was refused.
    fn end_of_round(&mut self) -> bool {
        self.said = std::mem::take(&mut self.now);
        std::mem::take(&mut self.refused).is_empty()
    }
}

/// Others need not be tried now.
fn is_unreachable(code: Code) -> bool {
    matches!(code, Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled)
}
