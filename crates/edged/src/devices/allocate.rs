//! Devices for the containers of a pod, before anything of it is started.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{Container, Pod};
use podlife::devices::{Shortage, Supply, choice, wanted};
use podlife::spec;

use super::plugin::PluginError;
use super::{Devices, Grant};

/// A pod cannot have its devices.
#[derive(Clone, Debug, thiserror::Error)]
pub enum AllocateError {
    /// Too few are free.
    #[error(transparent)]
    Shortage(#[from] Shortage),
    /// The plugin refused or did not answer.
    #[error("{0}")]
    Plugin(String),
    /// Nobody would know of it after a restart.
    #[error("the checkpoint of devices cannot be written: {0}")]
    Checkpoint(String),
}

impl From<PluginError> for AllocateError {
    fn from(error: PluginError) -> Self {
        Self::Plugin(error.to_string())
    }
}

impl Devices {
    /// Gives the containers of a pod the devices that they ask for and do not have yet. All of them, or none.
    ///
    /// # Errors
    /// Too few are free, or a plugin refused.
    pub async fn allocate(&self, pod: &Pod) -> Result<(), AllocateError> {
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        if !self.lacks_devices(uid, pod) {
            return Ok(());
        }
        let _turn = self.shared.turn.lock().await;
        let had = self.state().pods().iter().any(|known| known == uid);
        let given = self.give_all(uid, pod).await;
        let given = given.and_then(|()| self.save().map_or(Ok(()), |error| Err(AllocateError::Checkpoint(error))));
        if given.is_err() && !had {
            self.release(uid);
        }
        given
    }

    fn lacks_devices(&self, uid: &str, pod: &Pod) -> bool {
        let state = self.state();
        let containers = spec::init_containers(pod).iter().chain(spec::containers(pod));
        let mut needs = containers
            .flat_map(|container| wanted(container).into_keys().map(|resource| (container.name.as_str(), resource)));
        needs.any(|(container, resource)| state.knows(&resource) && state.grant(uid, container, &resource).is_none())
    }

    async fn give_all(&self, uid: &str, pod: &Pod) -> Result<(), AllocateError> {
        // What init containers have is free when they have ended, for the next one of them or for one of the others.
        let mut reusable: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for init in spec::init_containers(pod) {
            self.give(uid, init, &mut reusable).await?;
            if !spec::is_sidecar(init) {
                for (resource, devices) in self.state().devices(uid, &init.name) {
                    reusable.entry(resource).or_default().extend(devices);
                }
            }
        }
        for container in spec::containers(pod) {
            self.give(uid, container, &mut reusable).await?;
        }
        Ok(())
    }

    async fn give(
        &self,
        uid: &str,
        container: &Container,
        reusable: &mut BTreeMap<String, BTreeSet<String>>,
    ) -> Result<(), AllocateError> {
        for (resource, count) in wanted(container) {
            let reusable = reusable.entry(resource.clone()).or_default();
            let devices = match self.decided(uid, container, &resource, count, reusable)? {
                None => continue,
                Some((choice, plugin)) => {
                    let preferred = plugin.preferred(&choice.may, &choice.must, count).await;
                    let devices = choice.take(count, &preferred);
                    let answer = plugin.allocate(&devices).await?;
                    self.state().give(uid, &container.name, &resource, Grant::new(devices.clone(), answer));
                    devices
                }
            };
            // Two that run side by side do not share.
            reusable.retain(|id| !devices.contains(id));
        }
        Ok(())
    }

    /// `None` for what the container has already, and for a resource that no plugin of this node is for.
    fn decided(
        &self,
        uid: &str,
        container: &Container,
        resource: &str,
        count: usize,
        reusable: &mut BTreeSet<String>,
    ) -> Result<Option<(podlife::devices::Choice, super::plugin::Client)>, AllocateError> {
        let state = self.state();
        if !state.knows(resource) {
            return Ok(None);
        }
        if let Some(grant) = state.grant(uid, &container.name, resource) {
            reusable.retain(|id| !grant.devices.contains(id));
            return Ok(None);
        }
        let (healthy, in_use) = (state.healthy(resource), state.in_use(resource));
        let choice = choice(resource, count, &Supply { healthy: &healthy, in_use: &in_use, reusable })?;
        let gone = || AllocateError::from(Shortage::Unhealthy(resource.to_owned()));
        Ok(Some((choice, state.plugin(resource).ok_or_else(gone)?)))
    }

    /// Tells the plugins whose devices a container has that it starts, as far as they want to know.
    ///
    /// # Errors
    /// A plugin refused or did not answer.
    pub async fn before_start(&self, uid: &str, container: &str) -> Result<(), AllocateError> {
        let devices = self.state().devices(uid, container);
        for (resource, devices) in devices {
            let plugin = self.state().plugin(&resource);
            // Without its plugin a container that has its devices is started all the same.
            if let Some(plugin) = plugin {
                plugin.pre_start(&devices).await?;
            }
        }
        Ok(())
    }
}
