//! Eviction: which pod has to go when the node runs short of memory, disk or process ids, and when.
//!
//! [`signal`] names what is observed, [`threshold`] reads how much of it must stay free, [`Watch`] remembers how long it has
//! been short, [`reclaims`] says what the node frees first, [`rank`] orders the pods, [`message`] has the words. The rules are the kubelet's.

pub mod message;
pub mod rank;
mod reclaim;
pub mod signal;
pub mod threshold;
mod watch;

pub use reclaim::{Reclaims, reclaims};
pub use signal::{Observation, Observations, Pressure, Resource, Signal};
pub use threshold::{Amount, Threshold};
pub use watch::{Shortage, Watch};
