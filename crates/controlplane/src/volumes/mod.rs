//! Persistent volumes that are made by hand: claims get them, released ones are kept or named as what nobody can delete.
//!
//! [`plan`] decides and [`fit`] says what goes together, this file carries out; `protection` keeps what is in use. Claims of
//! classes that wait for their first consumer get their volume from the scheduler, which writes the volume's `claimRef`; this
//! controller completes the binding.

pub mod fit;
pub mod plan;
pub mod protection;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use kubeapi::ApiError;
use serde_json::json;
use tracing::debug;

use crate::client::{CLAIMS, Client, VOLUMES};
use crate::events::Recorder;
use crate::informer::{Cache, Change, Informer};
use crate::object::{Key, Object};
use crate::queue::WorkQueue;
use crate::reconcile::Reconcile;
use plan::{ClaimStep, Note, VolumeStep, Write};

const CLAIM: (&str, &str) = ("v1", "PersistentVolumeClaim");
const VOLUME: (&str, &str) = ("v1", "PersistentVolume");

/// The controller. Its keys are those of claims and, without namespace, of volumes.
pub struct Binder {
    client: Client,
    events: Recorder,
    claims: Arc<Cache>,
    volumes: Arc<Cache>,
    classes: Arc<Cache>,
}

/// Builds the controller and its queue.
pub fn new(
    client: Client,
    events: &Recorder,
    claims: &mut Informer,
    volumes: &mut Informer,
    classes: &mut Informer,
) -> (Binder, Arc<WorkQueue>) {
    let queue = Arc::new(WorkQueue::default());
    let (for_claims, all_volumes) = (queue.clone(), volumes.cache());
    claims.on_change(move |change| {
        let claim = change.object();
        for_claims.add(claim.key());
        for volume in all_volumes.matching(|v| fit::is_for(v, claim) || v.name() == claim.text("/spec/volumeName")) {
            for_claims.add(volume.key());
        }
    });
    let (for_volumes, all_claims) = (queue.clone(), claims.cache());
    volumes.on_change(move |change| {
        let volume = change.object();
        for_volumes.add(volume.key());
        let free = volume.at("/spec/claimRef").is_null();
        let concerned = |c: &Object| match c.text("/spec/volumeName") {
            "" => free || fit::is_for(volume, c),
            name => name == volume.name(),
        };
        for claim in all_claims.matching(concerned) {
            for_volumes.add(claim.key());
        }
    });
    let (for_classes, all_claims) = (queue.clone(), claims.cache());
    classes.on_change(move |change: Change<'_>| {
        let class = change.object().name();
        let waits = |c: &Object| c.text("/spec/volumeName").is_empty() && c.text("/spec/storageClassName") == class;
        for claim in all_claims.matching(waits) {
            for_classes.add(claim.key());
        }
    });
    let events = events.component("persistentvolume-controller");
    (Binder { client, events, claims: claims.cache(), volumes: volumes.cache(), classes: classes.cache() }, queue)
}

impl Reconcile for Binder {
    const NAME: &'static str = "persistentvolume-controller";

    async fn reconcile(&mut self, key: &Key) -> Result<Option<Duration>, ApiError> {
        if key.namespace.is_empty() { self.volume(key).await } else { self.claim(key).await }.map(|()| None)
    }
}

impl Binder {
    async fn claim(&self, key: &Key) -> Result<(), ApiError> {
        let Some(claim) = self.claims.get(key) else { return Ok(()) };
        match plan::claim(&claim, &self.volumes.all(), &self.classes.all()) {
            ClaimStep::Nothing => Ok(()),
            ClaimStep::Wait(note) => {
                self.tell(&claim, CLAIM, &note);
                Ok(())
            }
            ClaimStep::Lost(note) => {
                if claim.text("/status/phase") == "Lost" {
                    return Ok(());
                }
                self.tell(&claim, CLAIM, &note);
                let patch = json!({"metadata": {"uid": claim.uid()}, "status": {"phase": "Lost"}});
                let claim = self.client.patch(&CLAIMS, key, Some("status"), patch).await?;
                self.claims.learn(&claim);
                Ok(())
            }
            ClaimStep::Bind(volume) => self.bind(&volume, &claim).await,
        }
    }

    async fn bind(&self, volume: &Object, claim: &Object) -> Result<(), ApiError> {
        for write in plan::binding(volume, claim, Timestamp::now()) {
            let (resource, object, sub, mut patch) = match write {
                Write::Volume(patch) => (&VOLUMES, volume, None, patch),
                Write::VolumeStatus(patch) => (&VOLUMES, volume, Some("status"), patch),
                Write::Claim(patch) => (&CLAIMS, claim, None, patch),
                Write::ClaimStatus(patch) => (&CLAIMS, claim, Some("status"), patch),
            };
            patch["metadata"]["uid"] = json!(object.uid());
            let new = self.client.patch(resource, &object.key(), sub, patch).await?;
            if resource == &VOLUMES { self.volumes.learn(&new) } else { self.claims.learn(&new) }
        }
        debug!(claim = %claim.key(), volume = volume.name(), "claim and volume are bound");
        Ok(())
    }

    async fn volume(&self, key: &Key) -> Result<(), ApiError> {
        let Some(volume) = self.volumes.get(key) else { return Ok(()) };
        let promised = volume.at("/spec/claimRef");
        let text = |field: &str| promised[field].as_str().unwrap_or_default().to_owned();
        let claim = match self.claims.get(&Key::new(text("namespace"), text("name"))) {
            Some(claim) if claim.uid() == text("uid") => Some(claim),
            _ if text("uid").is_empty() => None,
            // The watch of claims may be behind that of volumes: ask.
            _ => match self.client.get(&CLAIMS, &Key::new(text("namespace"), text("name"))).await {
                Err(error) if error.is_not_found() => None,
                claim => Some(claim?),
            },
        };
        match plan::volume(&volume, claim.as_ref()) {
            VolumeStep::Nothing => Ok(()),
            VolumeStep::Phase(phase) => self.put_into(&volume, phase, None).await,
            VolumeStep::Unbind(claim) => {
                let patch = json!({"metadata": {"uid": volume.uid(), "resourceVersion": volume.text("/metadata/resourceVersion"),
                    "annotations": {fit::BOUND_BY_CONTROLLER: null}}, "spec": {"claimRef": claim}});
                let volume = self.client.patch(&VOLUMES, key, None, patch).await?;
                self.volumes.learn(&volume);
                self.put_into(&volume, "Available", None).await
            }
            VolumeStep::Fail(note) => {
                if volume.text("/status/phase") != "Failed" {
                    self.tell(&volume, VOLUME, &note);
                }
                self.put_into(&volume, "Failed", Some(&note.message)).await
            }
        }
    }

    async fn put_into(&self, volume: &Object, phase: &str, message: Option<&str>) -> Result<(), ApiError> {
        if volume.text("/status/phase") == phase {
            return Ok(());
        }
        let mut patch = plan::phase(phase, message, Timestamp::now());
        patch["metadata"]["uid"] = json!(volume.uid());
        match self.client.patch(&VOLUMES, &volume.key(), Some("status"), patch).await {
            Ok(new) => self.volumes.learn(&new),
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    fn tell(&self, object: &Object, kind: (&str, &str), note: &Note) {
        if note.warning {
            self.events.warning(object, kind, note.reason, note.message.as_str());
        } else {
            self.events.normal(object, kind, note.reason, note.message.as_str());
        }
    }
}
