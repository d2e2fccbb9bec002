//! The cgroups of pods as the runtime side keeps them: made with the driver that the runtime uses, their classes' shares kept true.

use k8s_openapi::api::core::v1::Pod;
use podlife::qos::qos_class;

use super::{CgroupDriver, Cgroups, PoisonError, Runtime, proto};
use crate::container::resources::pod_amounts;

impl Runtime {
    /// The tree of this node. Until the runtime has told its driver, the configured one is assumed.
    pub(crate) async fn cgroups(&self) -> Cgroups {
        let configured = CgroupDriver::parse(&self.settings.cgroup_driver);
        let of = |driver| Cgroups::new(driver, &self.settings.cgroup_root);
        let ask = async {
            let reported = match self.cri.cgroup_driver().await.map_err(drop)? {
                Some(proto::CgroupDriver::Systemd) => Some(CgroupDriver::Systemd),
                Some(proto::CgroupDriver::Cgroupfs) => Some(CgroupDriver::Cgroupfs),
                // containerd before 2.0 tells it only with its whole configuration.
                None => self
                    .cri
                    .uses_systemd_cgroups()
                    .await
                    .map_err(drop)?
                    .map(|systemd| if systemd { CgroupDriver::Systemd } else { CgroupDriver::Cgroupfs }),
            };
            let cgroups = of(reported.unwrap_or(configured));
            tracing::info!(
                driver = cgroups.driver.name(),
                reported = reported.is_some(),
                unified = cgroups.unified,
                "cgroups of pods"
            );
            if cgroups.driver != configured {
                tracing::warn!(
                    configured = configured.name(),
                    used = cgroups.driver.name(),
                    "cgroupDriver in edgecore.yaml differs from the container runtime's, which is used; change edgecore.yaml to match"
                );
            }
            if let Some(problem) = super::detect::problem(cgroups.driver) {
                tracing::error!(problem, "pods cannot be started on this node as it is set up");
            }
            if self.settings.cgroups_per_qos {
                self.prepare_cgroups(&cgroups).await;
            }
            Ok::<_, ()>(cgroups)
        };
        self.cgroups.get_or_try_init(|| ask).await.cloned().unwrap_or_else(|()| of(configured))
    }

    /// The cgroup that holds all pods, as far as the driver is known.
    pub(crate) fn cgroup_of_all_pods(&self) -> String {
        let configured = || Cgroups::new(CgroupDriver::parse(&self.settings.cgroup_driver), &self.settings.cgroup_root);
        self.cgroups.get().cloned().unwrap_or_else(configured).all_pods()
    }

    async fn prepare_cgroups(&self, cgroups: &Cgroups) {
        let (cgroups, node) = (cgroups.clone(), self.resources().clone());
        let made = tokio::task::spawn_blocking(move || cgroups.prepare(&node)).await;
        if let Ok(Err(error)) = made {
            tracing::warn!(%error, "the cgroups of the classes of pods are without their limits");
        }
    }

    /// Makes a pod's cgroup, or brings its limits up to date (after a change of the pod's resources): in it, containers may be given more
    /// than before only afterwards, and less only before. Without `cgroupsPerQOS` nothing is done.
    ///
    /// # Errors
    /// The limits cannot be set; the text names the file.
    pub async fn set_pod_cgroup(&self, pod: &Pod, uid: &str) -> Result<(), String> {
        if !self.settings.cgroups_per_qos {
            return Ok(());
        }
        let (cgroups, node) = (self.cgroups().await, self.resources().clone());
        let (pod, uid) = (pod.clone(), uid.to_owned());
        let set = tokio::task::spawn_blocking(move || cgroups.set_pod(&pod, &uid, &node)).await;
        set.map_err(|error| error.to_string())?.map_err(|error| error.to_string())
    }

    /// Counts what a pod requests; the class of Burstable pods gets what its pods request together.
    pub async fn count_requests(&self, pod: &Pod) {
        let Some(uid) = pod.metadata.uid.clone().filter(|_| qos_class(pod) == "Burstable") else { return };
        let request = pod_amounts(pod).cpu_request;
        self.change_burstable(uid, Some(request)).await;
    }

    async fn change_burstable(&self, uid: String, request: Option<i64>) {
        if !self.settings.cgroups_per_qos {
            return;
        }
        let total = {
            let mut burstable = self.burstable.lock().unwrap_or_else(PoisonError::into_inner);
            let before = match request {
                Some(request) => burstable.insert(uid, request),
                None => burstable.remove(&uid),
            };
            if before == request {
                return;
            }
            burstable.values().fold(0_i64, |sum, request| sum.saturating_add(*request))
        };
        let cgroups = self.cgroups().await;
        let set = tokio::task::spawn_blocking(move || cgroups.set_burstable(total)).await;
        if let Ok(Err(error)) = set {
            tracing::debug!(%error, "share of Burstable pods not set");
        }
    }

    pub(super) async fn remove_cgroup(&self, uid: &str) {
        if self.settings.cgroups_per_qos {
            self.cgroups().await.remove_pod(uid).await;
            self.change_burstable(uid.to_owned(), None).await;
        }
    }

    /// Removes cgroups of pods that nobody knows and in which nothing runs.
    pub fn remove_orphan_cgroups(&self, is_known: impl Fn(&str) -> bool) {
        let Some(cgroups) = self.cgroups.get().filter(|_| self.settings.cgroups_per_qos) else { return };
        for uid in cgroups.pods().into_iter().filter(|uid| !is_known(uid)) {
            if cgroups.remove_pod_if_empty(&uid) {
                tracing::info!(uid, "removed the cgroup of a pod that is gone");
            }
        }
    }
}
