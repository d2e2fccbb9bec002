//! Device twins as KubeEdge v1.23's DeviceTwin has them: what a device shall be (`expected`) and what it is (`actual`), property by property.
//!
//! [`topic`] reads MQTT topics, [`payload`] has what travels on them, [`check`] says what is allowed, [`twin::Twin`] is the state of one device
//! and decides what a message changes and who hears of it. Everything here is pure; time is handed in.

pub mod check;
pub mod payload;
pub mod topic;
pub mod twin;
