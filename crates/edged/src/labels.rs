//! Labels and annotations that carry the identity of pods and containers in the runtime (Kubernetes).

/// Pod name.
pub const POD_NAME: &str = "io.kubernetes.pod.name";
/// Pod namespace.
pub const POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
/// Pod UID.
pub const POD_UID: &str = "io.kubernetes.pod.uid";
/// Container name.
pub const CONTAINER_NAME: &str = "io.kubernetes.container.name";
/// Identity hash of a container's spec, hexadecimal.
pub const CONTAINER_HASH: &str = "io.kubernetes.container.hash";
/// Restart count, decimal.
pub const RESTART_COUNT: &str = "io.kubernetes.container.restartCount";
/// Path of the termination message in the container.
pub const TERMINATION_MESSAGE_PATH: &str = "io.kubernetes.container.terminationMessagePath";
/// `File` or `FallbackToLogsOnError`.
pub const TERMINATION_MESSAGE_POLICY: &str = "io.kubernetes.container.terminationMessagePolicy";
/// JSON of the preStop hook.
pub const PRE_STOP_HANDLER: &str = "io.kubernetes.container.preStopHandler";
/// JSON of the container's ports.
pub const CONTAINER_PORTS: &str = "io.kubernetes.container.ports";
/// JSON of the resources of a container that is started again to be resized.
pub const CONTAINER_RESOURCES: &str = "ferroedge.io/container.resources";
/// `spec.terminationGracePeriodSeconds`.
pub const TERMINATION_GRACE: &str = "io.kubernetes.pod.terminationGracePeriod";
/// `metadata.deletionGracePeriodSeconds`.
pub const DELETION_GRACE: &str = "io.kubernetes.pod.deletionGracePeriod";
