//! What is observed.

use std::collections::BTreeMap;

pub use crate::admission::Pressure;

/// Something of the node that can run short.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Signal {
    /// `memory.available`: capacity of the node minus its working set.
    MemoryAvailable,
    /// `allocatableMemory.available`: limit of all pods minus their working set.
    AllocatableMemoryAvailable,
    /// `nodefs.available`.
    NodeFsAvailable,
    /// `nodefs.inodesFree`.
    NodeFsInodesFree,
    /// `imagefs.available`.
    ImageFsAvailable,
    /// `imagefs.inodesFree`.
    ImageFsInodesFree,
    /// `containerfs.available`.
    ContainerFsAvailable,
    /// `containerfs.inodesFree`.
    ContainerFsInodesFree,
    /// `pid.available`.
    PidAvailable,
}

/// All signals by their names in the configuration.
pub const NAMES: [(&str, Signal); 9] = [
    ("memory.available", Signal::MemoryAvailable),
    ("allocatableMemory.available", Signal::AllocatableMemoryAvailable),
    ("nodefs.available", Signal::NodeFsAvailable),
    ("nodefs.inodesFree", Signal::NodeFsInodesFree),
    ("imagefs.available", Signal::ImageFsAvailable),
    ("imagefs.inodesFree", Signal::ImageFsInodesFree),
    ("containerfs.available", Signal::ContainerFsAvailable),
    ("containerfs.inodesFree", Signal::ContainerFsInodesFree),
    ("pid.available", Signal::PidAvailable),
];

/// What a signal is short of, as messages name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resource {
    /// `memory`.
    Memory,
    /// `ephemeral-storage`.
    EphemeralStorage,
    /// `inodes`.
    Inodes,
    /// `pids`.
    Pids,
}

impl Resource {
    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Resource::Memory => "memory",
            Resource::EphemeralStorage => "ephemeral-storage",
            Resource::Inodes => "inodes",
            Resource::Pids => "pids",
        }
    }
}

impl Signal {
    /// By its name in the configuration.
    pub fn parse(name: &str) -> Option<Self> {
        NAMES.into_iter().find(|(known, _)| *known == name).map(|(_, signal)| signal)
    }

    /// Its name in the configuration.
    pub fn as_str(self) -> &'static str {
        NAMES.into_iter().find(|(_, signal)| *signal == self).map_or("", |(name, _)| name)
    }

    /// What is short.
    pub fn resource(self) -> Resource {
        match self {
            Signal::MemoryAvailable | Signal::AllocatableMemoryAvailable => Resource::Memory,
            Signal::NodeFsAvailable | Signal::ImageFsAvailable | Signal::ContainerFsAvailable => {
                Resource::EphemeralStorage
            }
            Signal::NodeFsInodesFree | Signal::ImageFsInodesFree | Signal::ContainerFsInodesFree => Resource::Inodes,
            Signal::PidAvailable => Resource::Pids,
        }
    }
}

/// What there is of something, and what of it is free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Observation {
    /// Free.
    pub available: u64,
    /// All.
    pub capacity: u64,
}

/// What was observed; a signal that could not be read is absent.
pub type Observations = BTreeMap<Signal, Observation>;

impl Pressure {
    /// The condition that belongs to a signal.
    pub fn of(signal: Signal) -> Self {
        let resource = signal.resource();
        Self {
            memory: resource == Resource::Memory,
            disk: matches!(resource, Resource::EphemeralStorage | Resource::Inodes),
            pid: resource == Resource::Pids,
            ..Self::default()
        }
    }

    /// Both.
    pub fn or(self, other: Self) -> Self {
        Self {
            memory: self.memory || other.memory,
            disk: self.disk || other.disk,
            pid: self.pid || other.pid,
            shutting_down: self.shutting_down || other.shutting_down,
        }
    }

    /// Whether there is any.
    pub fn any(self) -> bool {
        self != Self::default()
    }

    /// Types of the conditions that are true.
    pub fn names(self) -> Vec<&'static str> {
        let all = [(self.memory, "MemoryPressure"), (self.disk, "DiskPressure"), (self.pid, "PIDPressure")];
        all.into_iter().filter(|(is, _)| *is).map(|(_, name)| name).collect()
    }
}
