//! Devices among what `downstream` follows and offers: what it does of the steps that DeviceController finds.

use std::sync::Arc;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use wire::operation;

use super::downstream::{Downstream, Event};
use super::object::push;
use super::view::View;
use crate::cloudhub::session::SessionHandle;
use crate::devicecontroller::downstream::{DEVICE, MODEL, Object, Step};
use crate::devicecontroller::membership;
use crate::kubernetes::kinds::Kind;
use crate::kubernetes::{Change, Kubernetes, Reflector, definitions};
use crate::objectsync::Records;

/// Feeds the task with devices and their models, if the API knows them.
pub fn follow(
    kubernetes: &Kubernetes,
    view: &Arc<View>,
    events: &mpsc::Sender<Event>,
    tasks: &TaskTracker,
    stopping: &CancellationToken,
) {
    for (name, wrap) in [(DEVICE, Event::Device as fn(Change) -> Event), (MODEL, Event::DeviceModel)] {
        let Some(kind) = Kind::named(name) else { continue };
        let reflector = Reflector { kubernetes: kubernetes.clone(), path: kind.list(), query: String::new() };
        let (events, stopping, view) = (events.clone(), stopping.clone(), view.clone());
        tasks.spawn(async move {
            let following = async {
                let missing = |missing| view.versions.set_absent(name, missing);
                let api = &reflector.kubernetes;
                definitions::defined(api, kind.api_version, kind.plural, "until then nodes get no devices", missing)
                    .await;
                reflector.run(events, wrap).await;
            };
            let _ = stopping.run_until_cancelled(following).await;
        });
    }
}

impl Downstream {
    /// A device or a model.
    pub(super) fn device(&mut self, kind: &'static str, change: Change) {
        if matches!(change, Change::Restored) {
            self.restored(kind);
        }
        let steps = if kind == DEVICE { self.devices.device(change) } else { self.devices.model(change) };
        for step in steps {
            match step {
                Step::CompareAll => {
                    let sessions = self.sessions.values().cloned();
                    sessions.for_each(|session| self.catch_up(session, false));
                }
                Step::Gone(Some(node), object) => self.delete(&node, &object),
                Step::Gone(None, object) => {
                    let has = |node: &str| self.records.version(node, &object.uid).is_some();
                    let refers = |node: &str| self.view.devices.read().refers(node, &object.name);
                    let nodes = self.sessions.keys().filter(|node| has(node) || refers(node));
                    nodes.for_each(|node| self.delete(node, &object));
                }
                Step::Loses(node, object) => {
                    if let Some(session) = self.sessions.get(&node) {
                        withdraw(&self.records, session, &object);
                    }
                }
                // What is being listed nodes get when they are compared.
                Step::Gets(node, ..) | Step::Member(node, ..) if !self.view.devices.are_listed() => {
                    if self.sessions.contains_key(&node) {
                        self.view.devices.note_skipped();
                    }
                }
                Step::Gets(node, object, verb, content) => {
                    self.offer(&node, &object.uid, object.version, verb, &object.path(), content);
                }
                Step::Member(node, member, is_added) => {
                    let session = self.sessions.get(&node).filter(|session| !session.peer().features.inventory);
                    // A node that does not read asks again.
                    let _ = session.map(|session| session.post(membership::change(&member, is_added)));
                }
            }
        }
    }

    fn delete(&self, node: &str, object: &Object) {
        self.offer(node, &object.uid, u64::MAX, operation::DELETE, &object.path(), object.rest());
    }
}

/// Takes an object that exists still from a node.
pub(super) fn withdraw(records: &Records, session: &SessionHandle, object: &Object) {
    records.withdraw(session.node(), &object.uid);
    let message = push(operation::DELETE, &object.path(), u64::MAX, object.rest());
    session.withdraw(&object.uid, object.version, message);
}
