//! The devices and models that edgecore has told of, and the task of each device.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dmi::v1beta1 as proto;
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use crate::device::{Device, DeviceError, Id};
use crate::driver::Driver;
use crate::outbox::Outbox;
use crate::push::Pusher;
use crate::readings::Readings;
use crate::worker::Worker;

/// Devices of one mapper.
pub(crate) const MAX_DEVICES: usize = 1000;
/// Models that it knows.
const MAX_MODELS: usize = 1000;

/// Who has all devices.
pub(crate) struct Registry<D: Driver> {
    driver: Arc<D>,
    outbox: Arc<Outbox>,
    pusher: Arc<Pusher>,
    tasks: TaskTracker,
    stopping: CancellationToken,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    models: BTreeMap<Id, proto::DeviceModel>,
    devices: BTreeMap<Id, Entry>,
    /// While a list is asked for: what edgecore has said since.
    newer: Option<Newer>,
}

#[derive(Default)]
struct Newer {
    models: BTreeSet<Id>,
    devices: BTreeSet<Id>,
}

struct Entry {
    message: proto::Device,
    device: watch::Sender<Arc<Device>>,
    readings: Arc<Readings>,
    _stop: DropGuard,
}

/// Edgecore asks for what cannot be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RegistryError {
    #[error("the request has no {0}")]
    Missing(&'static str),
    #[error("device {device} is of model {model}, which this mapper does not know: send CreateDeviceModel first")]
    UnknownModel { device: Id, model: Id },
    #[error("{0} is not known to this mapper")]
    UnknownDevice(Id),
    #[error(transparent)]
    Device(#[from] DeviceError),
    #[error("there are {0} {1} already, as many as a mapper takes")]
    Full(usize, &'static str),
}

impl<D: Driver> Registry<D> {
    pub fn new(driver: D, outbox: Arc<Outbox>, pusher: Arc<Pusher>, stopping: CancellationToken) -> Self {
        let (driver, tasks) = (Arc::new(driver), TaskTracker::new());
        Self { driver, outbox, pusher, tasks, stopping, state: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All devices have ended, after the mapper was told to stop.
    pub async fn ended(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// A device has come or changed; its id.
    pub fn put_device(&self, message: Option<proto::Device>) -> Result<Id, RegistryError> {
        let message = message.ok_or(RegistryError::Missing("device"))?;
        let mut state = self.lock();
        let id = self.put(&mut state, message)?;
        if let Some(newer) = &mut state.newer {
            newer.devices.insert(id.clone());
        }
        Ok(id)
    }

    fn put(&self, state: &mut State, message: proto::Device) -> Result<Id, RegistryError> {
        let id = Id::new(&message.namespace, &message.name);
        let model = model_of(&message);
        let of_model = state
            .models
            .get(&model)
            .ok_or_else(|| RegistryError::UnknownModel { device: id.clone(), model: model.clone() })?;
        let device = Device::new(&message, of_model)?;
        if let Some(entry) = state.devices.get_mut(&id) {
            entry.message = message;
            entry.replace(device);
            return Ok(id);
        }
        if state.devices.len() >= MAX_DEVICES {
            return Err(RegistryError::Full(MAX_DEVICES, "devices"));
        }
        info!(device = %id, %model, "a device has come");
        let (sender, receiver) = watch::channel(Arc::new(device));
        let (stop, readings) = (self.stopping.child_token(), Arc::new(Readings::default()));
        self.outbox.open(&id);
        let worker =
            Worker::new(self.driver.clone(), receiver, readings.clone(), self.outbox.clone(), self.pusher.clone());
        let stopped = stop.clone();
        self.tasks.spawn(async move {
            let _ = stopped.run_until_cancelled(worker.run()).await;
        });
        state.devices.insert(id.clone(), Entry { message, device: sender, readings, _stop: stop.drop_guard() });
        Ok(id)
    }

    /// A device has gone, if it was there.
    pub fn remove_device(&self, id: &Id) {
        let mut state = self.lock();
        if let Some(newer) = &mut state.newer {
            newer.devices.insert(id.clone());
        }
        self.remove(&mut state, id);
    }

    fn remove(&self, state: &mut State, id: &Id) {
        if state.devices.remove(id).is_some() {
            self.outbox.close(id);
            info!(device = %id, "a device has gone");
        }
    }

    /// A model has come or changed, which its devices follow; its id.
    pub fn put_model(&self, message: Option<proto::DeviceModel>) -> Result<Id, RegistryError> {
        let message = message.ok_or(RegistryError::Missing("model"))?;
        let mut state = self.lock();
        let id = Self::put_model_of(&mut state, message)?;
        if let Some(newer) = &mut state.newer {
            newer.models.insert(id.clone());
        }
        Ok(id)
    }

    fn put_model_of(state: &mut State, message: proto::DeviceModel) -> Result<Id, RegistryError> {
        let id = Id::new(&message.namespace, &message.name);
        if id.name.is_empty() {
            return Err(RegistryError::Missing("name of the model"));
        }
        let State { models, devices, .. } = state;
        if models.len() >= MAX_MODELS && !models.contains_key(&id) {
            let used: BTreeSet<Id> = devices.values().map(Entry::model).collect();
            models.retain(|model, _| used.contains(model));
            if models.len() >= MAX_MODELS {
                return Err(RegistryError::Full(MAX_MODELS, "models"));
            }
        }
        if models.get(&id) == Some(&message) {
            return Ok(id);
        }
        for entry in devices.values() {
            if entry.model() == id
                && let Ok(device) = Device::new(&entry.message, &message)
            {
                entry.replace(device);
            }
        }
        models.insert(id.clone(), message);
        Ok(id)
    }

    /// A model has gone. Devices of it keep what they have of it: they go next.
    pub fn remove_model(&self, id: &Id) {
        let mut state = self.lock();
        if let Some(newer) = &mut state.newer {
            newer.models.insert(id.clone());
        }
        state.models.remove(id);
    }

    /// A device as edgecore has told of it, with the latest values in its status.
    pub fn device(&self, id: &Id) -> Result<proto::Device, RegistryError> {
        let state = self.lock();
        let entry = state.devices.get(id).ok_or_else(|| RegistryError::UnknownDevice(id.clone()))?;
        let mut message = entry.message.clone();
        message.status.get_or_insert_default().twins = entry.readings.twins();
        Ok(message)
    }

    /// Edgecore is about to be asked for everything it knows.
    pub fn begin_listing(&self) -> Listing<'_, D> {
        self.lock().newer = Some(Newer::default());
        Listing(self)
    }
}

fn model_of(device: &proto::Device) -> Id {
    Id::new(&device.namespace, device.spec.as_ref().map_or("", |spec| &spec.device_model_reference))
}

impl Entry {
    fn model(&self) -> Id {
        model_of(&self.message)
    }

    fn replace(&self, device: Device) {
        self.device.send_if_modified(|current| {
            let changed = **current != device;
            if changed {
                *current = Arc::new(device);
            }
            changed
        });
    }
}

/// A list of everything is on its way.
pub(crate) struct Listing<'a, D: Driver>(&'a Registry<D>);

impl<D: Driver> Listing<'_, D> {
    /// Takes the list: a device that is not in it has gone while nobody was told; models are listed only with devices. What edgecore has
    /// said since it was asked is newer.
    pub fn end(self, list: proto::MapperRegisterResponse) {
        let registry = self.0;
        let mut state = registry.lock();
        let newer = state.newer.take().unwrap_or_default();
        let mut models = BTreeSet::new();
        for model in list.model_list {
            let id = Id::new(&model.namespace, &model.name);
            // Models repeat, one for each device.
            if models.insert(id.clone())
                && !newer.models.contains(&id)
                && let Err(error) = Registry::<D>::put_model_of(&mut state, model)
            {
                warn!(model = %id, %error, "a model of edgecore cannot be used");
            }
        }
        let mut devices = BTreeSet::new();
        for device in list.device_list {
            let id = Id::new(&device.namespace, &device.name);
            if !newer.devices.contains(&id)
                && let Err(error) = registry.put(&mut state, device)
            {
                warn!(device = %id, %error, "a device of edgecore cannot be driven");
            }
            devices.insert(id);
        }
        let gone = |id: &&Id| !devices.contains(id) && !newer.devices.contains(id);
        let gone: Vec<Id> = state.devices.keys().filter(gone).cloned().collect();
        gone.iter().for_each(|id| registry.remove(&mut state, id));
    }
}

impl<D: Driver> Drop for Listing<'_, D> {
    fn drop(&mut self) {
        self.0.lock().newer = None;
    }
}

#[cfg(test)]
#[path = "registry_tests.rs"]
mod tests;
