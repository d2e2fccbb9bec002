//! A driver whose devices do what a test says.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

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
    type Open = String;

    async fn open(&self, device: &Device) -> Result<String, Fault> {
        self.of(&device.id.name, |state| state.opened += 1);
        self.mood(&device.id.name).await?;
        Ok(device.id.name.clone())
    }

    async fn read(&self, open: &mut String, property: &Property) -> Result<Value, Fault> {
        self.mood(open).await?;
        let mut all = self.lock();
        let state = all.entry(open.clone()).or_default();
        state.reads += 1;
        let value = state.values.get(&property.name).cloned();
        value.ok_or_else(|| Fault::Refused(format!("{} has no value", property.name)))
    }

    async fn write(&self, open: &mut String, property: &Property, value: &Value) -> Result<(), Fault> {
        self.mood(open).await?;
        let mut all = self.lock();
        let state = all.entry(open.clone()).or_default();
        state.writes.push((property.name.clone(), value.clone()));
        if state.refuse_writes > 0 {
            state.refuse_writes -= 1;
            return Err(Fault::Refused("not now".to_owned()));
        }
        state.values.insert(property.name.clone(), value.clone());
        Ok(())
    }
}
