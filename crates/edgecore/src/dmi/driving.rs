//! Brings one mapper to what it has to know.

use std::time::Duration;

use edged::events::Recorder;
use link::backoff::Backoff;
use store::StoreError;
use tokio::sync::watch;
use tonic::Code;
use tracing::{debug, error};

use super::call::{CALL_LIMIT, Call, Client, Outcome, make};
use super::complaints::Complaints;
use super::registration::{Known, Registration, Rows, Told};
use super::wanted::{Wanted, digest};

/// Waits after a call that failed.
const FIRST_WAIT: Duration = Duration::from_millis(250);
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// Calls between two notes of what has been told.
const STEP: usize = 64;
/// After so many calls without an answer, one after the other, the mapper hangs.
const HANGS: usize = 3;
/// So often a mapper may refuse that something is gone.
const ENOUGH: usize = 5;

/// What is left after a pass.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Left {
    Nothing,
    /// Some calls have to be made again.
    Some,
    /// The mapper is not there, or hangs.
    All,
    /// Objects have changed meanwhile.
    News,
}

/// Goes on as long as the mapper is the one of its protocol.
pub(super) async fn drive(rows: Rows, mapper: Registration, mut changed: watch::Receiver<()>, recorder: Recorder) {
    if !mapper.with_data {
        return;
    }
    let client = match dmi::socket::channel(&mapper.address) {
        Ok(channel) => Client::new(channel),
        // It was looked at when the mapper registered.
        Err(error) => return error!(socket = mapper.address, %error, "the mapper cannot be called"),
    };
    let complaints = Complaints::new(&mapper.protocol, recorder);
    let mut driving = Driving { rows, mapper, client, complaints };
    let mut backoff = Backoff::new(FIRST_WAIT, LONGEST_WAIT);
    loop {
        changed.mark_unchanged();
        let left = driving.pass(&changed).await.unwrap_or_else(|error| {
            let protocol = &driving.mapper.protocol;
            error!(protocol, %error, "what the mapper has to know cannot be read or noted; tried again");
            Left::All
        });
        let waiting = match left {
            Left::News => continue,
            Left::Nothing => {
                backoff.reset();
                None
            }
            Left::Some | Left::All => Some(backoff.next_wait()),
        };
        let waited = async {
            match waiting {
                Some(wait) => tokio::time::sleep(wait).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            // One that is not there is not tried again for that.
            news = changed.changed(), if left != Left::All => if news.is_err() { return },
            () = waited => {}
        }
    }
}

struct Driving {
    rows: Rows,
    mapper: Registration,
    client: Client,
    complaints: Complaints,
}

impl Driving {
    /// Makes the calls that are due.
    async fn pass(&mut self, changed: &watch::Receiver<()>) -> Result<Left, StoreError> {
        let wanted = Wanted::read_aside(self.rows.database(), &self.mapper.protocol).await?;
        self.complaints.left_out(&wanted);
        let due = due(&self.mapper.told, &wanted);
        // What has been told is written as a whole: seldom when it is much.
        let step = STEP.max(due.len() / 8);
        let mut left = Left::Nothing;
        for calls in due.chunks(step) {
            left = self.make(calls, &wanted).await?;
            if left == Left::All {
                break;
            }
            if changed.has_changed().unwrap_or_default() {
                left = Left::News;
                break;
            }
        }
        let is_refused = self.complaints.end_of_pass(left != Left::News);
        Ok(if left == Left::Nothing && is_refused { Left::Some } else { left })
    }

    /// Makes some calls, with a note before and after.
    async fn make(&mut self, calls: &[Call], wanted: &Wanted) -> Result<Left, StoreError> {
        // Whatever ends us: of what is not known whether it got there it will be said again what it is, or that it is gone.
        let before: Vec<Option<Known>> =
            calls.iter().map(|call| note(&mut self.mapper.told, call, Some(Known::Perhaps))).collect();
        self.rows.put(&self.mapper).await?;
        let (mut late, mut left) = (0, Left::Nothing);
        for (call, known) in calls.iter().zip(before) {
            if left == Left::All {
                note(&mut self.mapper.told, call, known);
                continue;
            }
            match make(self.client.clone(), call.clone()).await {
                Outcome::Taken => {
                    late = 0;
                    debug!(
                        protocol = self.mapper.protocol,
                        call = call.name(),
                        object = call.object(),
                        "the mapper has taken it"
                    );
                    note(&mut self.mapper.told, call, call.digest());
                    self.complaints.reached();
                }
                Outcome::Refused(status) => {
                    late = 0;
                    self.complaints.reached();
                    let is_enough = self.complaints.refused(call, status.message(), wanted) >= ENOUGH;
                    match call {
                        // It does not know it, or will not say so.
                        Call::Remove(_) | Call::RemoveModel(_) if is_enough || status.code() == Code::NotFound => {
                            note(&mut self.mapper.told, call, None);
                        }
                        // It may have it all the same.
                        Call::Create(..) | Call::Register(..) => {}
                        _ => drop(note(&mut self.mapper.told, call, known)),
                    }
                }
                Outcome::Late => {
                    late += 1;
                    let reason = format!("no answer within {} s", CALL_LIMIT.as_secs());
                    self.complaints.refused(call, &reason, wanted);
                    if late >= HANGS {
                        left = Left::All;
                        self.complaints.unreachable(call, &reason);
                    }
                }
                Outcome::Gone(status) => {
                    left = Left::All;
                    self.complaints.unreachable(call, status.message());
                }
            }
        }
        self.rows.put(&self.mapper).await?;
        Ok(left)
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
                calls.push(Call::Create(name.clone(), model.clone()));
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

/// Notes what the mapper knows now of the call's object; what it knew before.
fn note(told: &mut Told, call: &Call, known: Option<Known>) -> Option<Known> {
    let all = match call {
        Call::Create(..) | Call::UpdateModel(..) | Call::RemoveModel(_) => &mut told.models,
        Call::Register(..) | Call::Update(..) | Call::Remove(_) => &mut told.devices,
    };
    match known {
        Some(known) => all.insert(call.object().to_owned(), known),
        None => all.remove(call.object()),
    }
}
