//! Kubernetes Events of pods and of the node: recorded here, sent to the cloud through MetaManager.

/// `type` of an Event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventType {
    /// Information.
    Normal,
    /// Someone may have to act.
    Warning,
}
