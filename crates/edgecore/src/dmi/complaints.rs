//! What is said of mappers in the log and by Events.

use std::collections::HashMap;

use edged::events::{EventType, Recorder};
use tracing::{info, warn};

use super::call::Call;
use super::wanted::Wanted;

/// What is wrong with a mapper, said once as long as it is the same.
pub(super) struct Complaints {
    protocol: String,
    recorder: Recorder,
    is_unreachable: bool,
    /// By call and object, what was said last, and in how many passes.
    said: HashMap<String, (String, usize)>,
    /// The same in this pass.
    now: HashMap<String, (String, usize)>,
    is_refused: bool,
}

impl Complaints {
    pub(super) fn new(protocol: &str, recorder: Recorder) -> Self {
        let (said, now) = (HashMap::new(), HashMap::new());
        Self { protocol: protocol.to_owned(), recorder, is_unreachable: false, said, now, is_refused: false }
    }

    /// In how many passes something was said of this, with this one; whether it was something else before.
    fn count(&mut self, about: String, reason: &str) -> (usize, bool) {
        let before = self.said.get(&about).or_else(|| self.now.get(&about));
        let (count, is_new) = before.map_or((1, true), |(said, count)| (count + 1, said != reason));
        self.now.insert(about, (reason.to_owned(), count));
        (count, is_new)
    }

    pub(super) fn left_out(&mut self, wanted: &Wanted) {
        for (device, reason) in &wanted.left_out {
            if self.count(device.clone(), reason).1 {
                warn!(device, protocol = self.protocol, reason, "the mapper does not get this device");
                let message = format!("the mapper of {:?} does not get this device: {reason}", self.protocol);
                self.record(device, wanted, "NotForMapper", message);
            }
        }
    }

    /// How often that is so by now.
    pub(super) fn refused(&mut self, call: &Call, reason: &str, wanted: &Wanted) -> usize {
        let name = call.object();
        let (count, is_new) = self.count(format!("{} {name}", call.name()), reason);
        if is_new {
            warn!(
                protocol = self.protocol,
                call = call.name(),
                object = name,
                reason,
                "the mapper refuses; tried again"
            );
            if matches!(call, Call::Register(..) | Call::Update(..)) {
                let message = format!("the mapper of {:?} does not take this device: {reason}", self.protocol);
                self.record(name, wanted, "MapperRefused", message);
            }
        }
        self.is_refused = true;
        count
    }

    pub(super) fn unreachable(&mut self, call: &Call, reason: &str) {
        if !std::mem::replace(&mut self.is_unreachable, true) {
            let (protocol, name, object) = (&self.protocol, call.name(), call.object());
            warn!(protocol, call = name, object, reason, "the mapper does not answer: does it run? Tried again");
        }
    }

    pub(super) fn reached(&mut self) {
        if std::mem::replace(&mut self.is_unreachable, false) {
            info!(protocol = self.protocol, "the mapper answers again");
        }
    }

    fn record(&self, device: &str, wanted: &Wanted, reason: &'static str, message: String) {
        if let (Some((namespace, name)), Some(uid)) = (device.split_once('/'), wanted.uids.get(device)) {
            self.recorder.device(namespace, name, uid, EventType::Warning, reason, message);
        }
    }

    /// Whether something was refused. What a whole pass has not said again is no more.
    pub(super) fn end_of_pass(&mut self, is_whole: bool) -> bool {
        let now = std::mem::take(&mut self.now);
        match is_whole {
            true => self.said = now,
            false => self.said.extend(now),
        }
        std::mem::take(&mut self.is_refused)
    }
}
