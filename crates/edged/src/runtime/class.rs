//! RuntimeClass: the handler that a pod's sandbox is made with.

use k8s_openapi::api::{core::v1::Pod, node::v1::RuntimeClass};

use wire::kind;

use super::{Runtime, StartError};
use crate::node::NO_NAMESPACE;

impl Runtime {
    /// The handler of the pod's class; empty, which is the runtime's own default, for a pod without one.
    ///
    /// # Errors
    /// The class does not exist or cannot be read; the text is the kubelet's.
    pub(super) async fn handler(&self, pod: &Pod) -> Result<String, StartError> {
        let class = pod.spec.as_ref().and_then(|s| s.runtime_class_name.as_deref()).filter(|class| !class.is_empty());
        let Some(class) = class else { return Ok(String::new()) };
        let failed = |message: String| Err(StartError { reason: "CreatePodSandboxError", message });
        match self.meta.get::<RuntimeClass>(NO_NAMESPACE, kind::RUNTIME_CLASS, class).await {
            Ok(Some(found)) => Ok(found.handler),
            Ok(None) => failed(format!("runtimeclass.node.k8s.io {class:?} not found")),
            Err(error) => failed(format!("failed to lookup RuntimeClass {class:?}: {error}")),
        }
    }
}
