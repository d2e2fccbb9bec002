//! Resizing in place, as the runtime side does it: the limits of the pod's cgroup and of its containers.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod};

use super::Runtime;
use crate::{container::resources, labels};

impl Runtime {
    /// Gives the pod's cgroup room for what the containers had `before` and for what they get: containers cannot have more than it.
    ///
    /// # Errors
    /// The limits cannot be set; the text names the file.
    pub async fn widen_pod_cgroup(&self, before: Pod, pod: &Pod, uid: &str) -> Result<(), String> {
        if !self.settings.cgroups_per_qos {
            return Ok(());
        }
        let (cgroups, node) = (self.cgroups().await, self.resources().clone());
        let (pod, uid) = (pod.clone(), uid.to_owned());
        let set = tokio::task::spawn_blocking(move || cgroups.widen_pod(&before, &pod, &uid, &node)).await;
        set.map_err(|error| error.to_string())?.map_err(|error| error.to_string())
    }

    /// Gives a running container the limits of its spec. A limit of memory that is below what the container uses is refused: the kernel
    /// would kill it.
    ///
    /// # Errors
    /// It keeps the limits that it has; the text says why.
    pub async fn resize_container(&self, pod: &Pod, container: &Container, id: &str) -> Result<(), String> {
        let limit = resources::amounts(container).memory_limit;
        if limit > 0
            && let Some(used) = self.memory_used(pod, id).await.filter(|used| *used > limit.unsigned_abs())
        {
            return Err(format!(
                "the memory limit of {limit} bytes is below the {used} bytes that the container uses; it is tried again"
            ));
        }
        let mut values = resources::container(pod, container, self.resources());
        if values.cpu_period > 0 && values.cpu_quota == 0 {
            // What the container has would stay otherwise.
            values.cpu_quota = -1;
        }
        self.cri.update_resources(id, values).await.map_err(|error| error.message())
    }

    /// Bytes of memory that a container uses, where the runtime tells.
    async fn memory_used(&self, pod: &Pod, id: &str) -> Option<u64> {
        let uid = pod.metadata.uid.clone()?;
        let all = self.cri.container_stats(BTreeMap::from([(labels::POD_UID.to_owned(), uid)])).await.ok()?;
        let stats = all.into_iter().find(|stats| stats.attributes.as_ref().is_some_and(|a| a.id == id))?;
        stats.memory?.working_set_bytes.map(|bytes| bytes.value)
    }
}
