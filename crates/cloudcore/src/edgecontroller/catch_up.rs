//! A node that has just connected: what does it lack, what has it too much?

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use link::backoff::Backoff;
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tracing::warn;
use wire::{Message, kind, operation};

use super::devices::withdraw;
use super::downstream::{Event, RESTORED};
use super::object::{push, read, read_pod, tombstone, with_kind};
use super::references::{self, Reference};
use super::view::{NamespacedName, View};
use crate::cloudhub::session::SessionHandle;
use crate::devicecontroller::devices::Wanted;
use crate::devicecontroller::downstream::{DEVICE, MODEL, Object};
use crate::devicecontroller::membership;
use crate::kubernetes::{Kubernetes, KubernetesError};
use crate::objectsync::{Doubt, Record, Records};

/// The wait after a failed try, doubled up to the longest.
const FIRST_WAIT: Duration = Duration::from_millis(500);
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// How long the lists of what there is, and of what nodes have, may take.
const RECORDS_WAIT: Duration = Duration::from_secs(15);

/// What a node lacks cannot be found out now.
#[derive(Debug, thiserror::Error)]
enum CatchUpError {
    #[error("the node did not say what it has")]
    Silent,
    #[error("the session has ended")]
    Ended,
    #[error(transparent)]
    Kubernetes(#[from] KubernetesError),
}

/// Brings a node that has just connected up to date.
pub(super) struct CatchUp {
    pub(super) kubernetes: Kubernetes,
    pub(super) view: Arc<View>,
    pub(super) records: Records,
    pub(super) session: SessionHandle,
    /// Places for those that ask the API, and its own while it does.
    pub(super) at_once: Arc<Semaphore>,
    pub(super) place: Option<OwnedSemaphorePermit>,
    pub(super) events: mpsc::Sender<Event>,
}

impl CatchUp {
    /// Offers it all, as long as that is wanted; a failed try is repeated until the session ends.
    pub(super) async fn run(mut self) {
        let mut backoff = Backoff::new(FIRST_WAIT, LONGEST_WAIT);
        while let Some(is_thorough) = self.session.next_comparison() {
            let tried = self.try_once(is_thorough).await;
            self.place = None;
            match tried {
                Ok(doubt) => {
                    self.session.compared(doubt);
                    backoff.reset();
                }
                Err(_) if self.session.has_ended() => return,
                Err(error) => {
                    warn!(node = self.session.node(), %error, "what the node lacks could not be found out; tried again");
                    self.session.want_comparison(is_thorough);
                    tokio::time::sleep(backoff.next_wait()).await;
                }
            }
            if self.session.has_ended() {
                return;
            }
        }
    }

    /// In a thorough try everything is asked of the Kubernetes API. Otherwise what the watches have told is believed.
    async fn try_once(&mut self, is_thorough: bool) -> Result<Option<Doubt>, CatchUpError> {
        let session = self.session.clone();
        let node = session.node();
        let doubt = self.records.doubt(node);
        // What is not known in time is asked for.
        let _ = tokio::time::timeout(RECORDS_WAIT, self.view.versions.all_listed()).await;
        if !tokio::time::timeout(RECORDS_WAIT, self.records.listed()).await.unwrap_or(false) {
            warn!(
                node,
                "the records of what nodes have cannot be read; the node gets what it may have already, and may keep what is gone"
            );
        }
        let peer = session.peer();
        let is_noted = peer.features.inventory && peer.digest == self.records.digest(node);
        if peer.features.inventory && !is_noted && !session.ask_inventory().await {
            return Err(CatchUpError::Silent);
        }
        let mut records: HashMap<String, Record> =
            self.records.of_node(node).into_iter().map(|r| (r.uid.clone(), r)).collect();
        let believes = !is_thorough && self.may_believe(records.values());
        // It is in no inventory: a node that has lost its database may have lost it too.
        if !is_noted || !records.values().any(|record| record.kind == "Node" && believes && self.is_current(record)) {
            self.node(node).await?;
        }
        // Deletions first: a new object may have the name of one that is gone.
        let lacking = self.pods(node, &mut records, believes).await?;
        let devices = self.devices(node, &mut records, is_thorough).await?;
        records.retain(|_, record| !believes || !self.is_current(record));
        for record in records.values() {
            self.record(record).await?;
        }
        for (name, uid, version, message) in lacking {
            // Meanwhile it may be gone, and the node may have been told so.
            let is_there = || self.view.read().get(&name.0, &name.1).is_some_and(|pod| pod.uid == uid);
            if !self.view.are_listed() || is_there() {
                self.offer(&uid, version, message);
            }
        }
        for (wanted, version, message) in devices {
            // Looked at and offered at once: what the node loses meanwhile it loses after this.
            let known = self.view.devices.read();
            if known.wants(node, &wanted) {
                self.offer(&wanted.uid, version, message);
            }
        }
        // Once after a connection, and never without knowing: a Go edge forgets all others.
        let all = membership::all(&self.view.devices.read(), node);
        if let Some(all) = all.filter(|_| !is_thorough && !session.peer().features.inventory) {
            // A node that does not read asks again.
            let _ = session.post(all);
        }
        Ok(doubt)
    }

    /// Asks the API, with a place that is kept until all is found out; `None` when there is no such object.
    async fn get(&mut self, path: &str) -> Result<Option<Bytes>, CatchUpError> {
        if self.place.is_none() {
            self.place = self.at_once.clone().acquire_owned().await.ok();
        }
        if self.session.has_ended() {
            return Err(CatchUpError::Ended);
        }
        match self.kubernetes.get(path).await {
            Ok(text) => Ok(Some(text)),
            Err(error) if error.code() == 404 => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// The Node itself goes with each connection, unless the node is known to have it.
    async fn node(&mut self, node: &str) -> Result<(), CatchUpError> {
        let Some(text) = self.get(&format!("/api/v1/nodes/{node}")).await? else { return Ok(()) };
        if let Some(object) = read(&text) {
            let (uid, version) = (object.uid().to_owned(), object.version());
            let path = format!("null/node/{node}");
            self.session.offer(&uid, version, push(operation::UPDATE, &path, version, with_kind(text, "Node")));
        }
        Ok(())
    }

    /// Whether the watches say that the node has the object as it is.
    fn is_current(&self, record: &Record) -> bool {
        self.view.versions.is_current(&record.kind, &record.uid, record.version)
    }

    /// Whether the watches may be believed. A Go edge cannot say what it has, and a restored cluster counts its versions anew.
    fn may_believe<'a>(&self, mut records: impl Iterator<Item = &'a Record>) -> bool {
        let newest = self.view.versions.newest();
        self.session.peer().features.inventory
            && self.view.are_listed()
            && records.all(|record| record.version <= newest)
    }

    /// Pods that the node has not acknowledged in their version. Records of pods that are there are taken out of `records`.
    async fn pods(
        &mut self,
        node: &str,
        records: &mut HashMap<String, Record>,
        believes: bool,
    ) -> Result<Vec<(NamespacedName, String, u64, Message)>, CatchUpError> {
        #[derive(Deserialize)]
        struct List {
            metadata: ListMetadata,
            items: Vec<Box<RawValue>>,
        }
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct ListMetadata {
            #[serde(default)]
            resource_version: String,
        }
        if believes {
            let pods = self.view.read();
            let has = |uid: &str| records.get(uid).map(|record| record.version);
            let noted = records.values().filter(|record| record.kind == "Pod").count();
            // One that is noted and that the watch has not shown is gone, or newer than the watch: the list tells.
            if let Some(all) = pods.acknowledged_of(node, has).filter(|all| all.len() == noted) {
                all.into_iter().for_each(|uid| drop(records.remove(uid)));
                return Ok(Vec::new());
            }
        }
        let list = self.get(&format!("/api/v1/pods?fieldSelector=spec.nodeName%3D{node}")).await?;
        let text = list.ok_or_else(|| KubernetesError::Request("the API knows no pods".into()))?;
        let list: List = serde_json::from_slice(&text).map_err(|e| KubernetesError::Request(e.into()))?;
        let now: u64 = list.metadata.resource_version.parse().unwrap_or(u64::MAX);
        // A version from the future: the cluster was restored from a backup. What is there now may have the number of what was.
        if records.values().any(|record| record.version > now) {
            warn!(node, "the cluster is older than what the node has: the node gets everything again");
            self.records.distrust(node);
            self.session.close(RESTORED);
            // When the controller has ended there is nobody to tell.
            let _ = self.events.send(Event::FromTheFuture).await;
            return Err(CatchUpError::Ended);
        }
        let mut lacking = Vec::new();
        for item in list.items {
            let text = Bytes::from(String::from(Box::<str>::from(item)));
            let Some((name, entry, _)) = read_pod(&text) else { continue };
            let acknowledged = records.remove(&entry.uid).map(|record| record.version);
            if acknowledged != Some(entry.version) {
                let path = format!("{}/{}/{}", name.0, kind::POD, name.1);
                let message = push(operation::UPDATE, &path, entry.version, with_kind(text, "Pod"));
                lacking.push((name, entry.uid, entry.version, message));
            }
        }
        Ok(lacking)
    }

    /// Devices and models that the node has not acknowledged in their version; those that it has too much it is rid of. Which ones are the node's only
    /// the watches tell: the API cannot be asked for that. Their records are taken out of `records`.
    async fn devices(
        &mut self,
        node: &str,
        records: &mut HashMap<String, Record>,
        is_thorough: bool,
    ) -> Result<Vec<(Wanted, u64, Message)>, CatchUpError> {
        let mut noted: HashMap<String, Record> =
            records.extract_if(|_, record| matches!(record.kind.as_str(), DEVICE | MODEL)).collect();
        // They are still being listed, or the API has none: the node keeps what it has, and is compared again when they are.
        let Some(wanted) = self.view.devices.wanted(node) else { return Ok(Vec::new()) };
        let mut lacking = Vec::new();
        for wanted in wanted {
            let acknowledged = noted.remove(&wanted.uid).map(|record| record.version);
            // Another cloudcore, whose watch was quicker, may have brought the node further.
            let is_behind = acknowledged.is_some_and(|acknowledged| acknowledged > wanted.version);
            let (text, version) = match is_thorough || is_behind {
                false => (wanted.text.clone(), wanted.version),
                true => {
                    let path = wanted.kind.object(&wanted.name.0, &wanted.name.1);
                    let found = self.get(&path).await?;
                    let version = |text: &Bytes| read(text).filter(|n| n.uid() == wanted.uid).map(|now| now.version());
                    // Where it is gone, the watch will tell.
                    let Some((text, version)) = found.and_then(|text| Some((text.clone(), version(&text)?))) else {
                        continue;
                    };
                    (text, version)
                }
            };
            if acknowledged != Some(version) {
                let path = format!("{}/{}/{}", wanted.name.0, wanted.kind.segment, wanted.name.1);
                let message = push(operation::UPDATE, &path, version, with_kind(text, wanted.kind.name));
                lacking.push((wanted, version, message));
            }
        }
        for record in noted.into_values() {
            let kind = if record.kind == DEVICE { DEVICE } else { MODEL };
            let name = (record.namespace, record.name);
            let known = self.view.devices.read();
            let version = known.version(kind, &name, &record.uid);
            let object = Object { kind, name, uid: record.uid, version: version.unwrap_or(u64::MAX) };
            match version {
                Some(_) => withdraw(&self.records, &self.session, &object),
                None => self.delete(&object.name, &object.path(), &object.uid),
            }
        }
        Ok(lacking)
    }

    /// Something that the node has: is it still there, and in this version?
    async fn record(&mut self, record: &Record) -> Result<(), CatchUpError> {
        let (segment, plural, referred) = match record.kind.as_str() {
            "Pod" => (kind::POD, "", None),
            "ConfigMap" => (kind::CONFIG_MAP, "configmaps", Some(references::Kind::ConfigMap)),
            "Secret" => (kind::SECRET, "secrets", Some(references::Kind::Secret)),
            _ => return Ok(()),
        };
        let name = (record.namespace.clone(), record.name.clone());
        let path = format!("{}/{segment}/{}", name.0, name.1);
        if let Some(kind) = referred {
            let found = self.get(&format!("/api/v1/namespaces/{}/{plural}/{}", name.0, name.1)).await?;
            let object = |text: &Bytes| read(text).map(|object| (object.uid().to_owned(), object.version()));
            if let Some((text, (uid, version))) = found.and_then(|text| object(&text).map(|object| (text, object))) {
                let is_same = uid == record.uid;
                if !is_same {
                    self.delete(&name, &path, &record.uid);
                }
                let reference = Reference { kind, name: record.name.clone() };
                // What no pod on the node refers to any more is none of its business, and must not stay there.
                let may_have = self.view.read().refers(self.session.node(), &name.0, &reference);
                if !may_have && is_same {
                    let tombstone = tombstone(&name, &record.uid);
                    let message = push(operation::DELETE, &path, u64::MAX, tombstone);
                    self.session.withdraw(&record.uid, version, message);
                }
                if may_have && !(is_same && version == record.version) {
                    let message = push(operation::UPDATE, &path, version, with_kind(text, &record.kind));
                    self.offer(&uid, version, message);
                }
                return Ok(());
            }
        }
        self.delete(&name, &path, &record.uid);
        Ok(())
    }

    fn delete(&self, name: &NamespacedName, path: &str, uid: &str) {
        self.session.offer(uid, u64::MAX, push(operation::DELETE, path, u64::MAX, tombstone(name, uid)));
    }

    fn offer(&self, uid: &str, version: u64, message: Message) {
        if !self.session.peer().features.inventory {
            self.records.expect(self.session.node(), uid, &message.route.resource);
        }
        self.session.offer(uid, version, message);
    }
}
