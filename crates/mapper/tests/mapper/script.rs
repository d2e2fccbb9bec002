//! A driver whose devices do what a test says.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use mapper::{Device, Driver, Fault, Property, Value};

/// Devices by their names.
#[derive(Clone, Default)]
pub struct Script(Arc<Mutex<BTreeMap<String, State>>>);

#[derive(Default)]
pub struct State {
    pub values: BTreeMap<String, Value>,
    pub mood: Mood,
    /// In order.
    pub writes: Vec<(String, Value)>,
    /// Refuses so many writes.
    pub refuse_writes: usize,
    pub opened: usize,
    pub reads: usize,
    /// Properties that fail so, whenever they are read.
    pub faults: BTreeMap<String, Fault>,
    /// Properties that take so long to read.
    pub slow: BTreeMap<String, Duration>,
    /// How long a write takes.
    pub slow_write: Duration,
    pub begun_writes: usize,
    /// Calls for each property.
    pub asked: BTreeMap<String, usize>,
    /// Without this key in the device's configuration nothing can be found.
    pub needs: Option<&'static str>,
}

#[derive(Clone, Copy, Default)]
pub enum Mood {
    #[default]
    Good,
    /// Never answers.
    Hangs,
    /// Breaks the connection.
    Dead,
}

impl Script {
    pub fn of(&self, device: &str, act: impl FnOnce(&mut State)) {
        act(self.lock().entry(device.to_owned()).or_default());
    }

    pub fn ask<T>(&self, device: &str, what: impl FnOnce(&State) -> T) -> T {
        what(self.lock().entry(device.to_owned()).or_default())
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, State>> {
        self.0.lock().unwrap()
    }

    /// How long a read takes.
    fn begin(&self, open: &Device, property: &Property) -> Result<Duration, Fault> {
        let mut all = self.lock();
        let state = all.entry(open.id.name.clone()).or_default();
        *state.asked.entry(property.name.clone()).or_default() += 1;
        match state.needs.filter(|key| !open.config.contains_key(*key)) {
            Some(key) => Err(Fault::Config(format!("configData.{key} is needed"))),
            None => Ok(state.slow.get(&property.name).copied().unwrap_or_default()),
        }
    }

    async fn mood(&self, device: &str) -> Result<(), Fault> {
        let mood = self.ask(device, |state| state.mood);
        match mood {
            Mood::Good => Ok(()),
            Mood::Hangs => std::future::pending().await,
            Mood::Dead => Err(Fault::Unreachable("it is dead".to_owned())),
        }
    }
}

impl Driver for Script {
    type Open = Device;

    async fn open(&self, device: &Device) -> Result<Device, Fault> {
        self.of(&device.id.name, |state| state.opened += 1);
        self.mood(&device.id.name).await?;
        Ok(device.clone())
    }

    async fn read(&self, open: &mut Device, property: &Property) -> Result<Value, Fault> {
        let slow = self.begin(open, property)?;
        self.mood(&open.id.name).await?;
        tokio::time::sleep(slow).await;
        let mut all = self.lock();
        let state = all.entry(open.id.name.clone()).or_default();
        if let Some(fault) = state.faults.get(&property.name) {
            return Err(fault.clone());
        }
        state.reads += 1;
        let value = state.values.get(&property.name).cloned();
        value.ok_or_else(|| Fault::Refused(format!("{} has no value", property.name)))
    }

    async fn write(&self, open: &mut Device, property: &Property, value: &Value) -> Result<(), Fault> {
        self.begin(open, property)?;
        self.mood(&open.id.name).await?;
        self.of(&open.id.name, |state| state.begun_writes += 1);
        tokio::time::sleep(self.ask(&open.id.name, |state| state.slow_write)).await;
        let mut all = self.lock();
        let state = all.entry(open.id.name.clone()).or_default();
        state.writes.push((property.name.clone(), value.clone()));
        if state.refuse_writes > 0 {
            state.refuse_writes -= 1;
            return Err(Fault::Refused("not now".to_owned()));
        }
        state.values.insert(property.name.clone(), value.clone());
        Ok(())
    }
}
