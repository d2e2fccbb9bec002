//! Where pods find the API server: the Service `default/kubernetes`, asked of the cloud and remembered.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Endpoints, Service};
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::container::service::ServiceAddress;
use crate::meta::MetaClient;
use crate::settings::Settings;

const NAMESPACE: &str = "default";
const NAME: &str = "kubernetes";
/// A cloud that does not know this question (KubeEdge's own) never answers: the first container waits so long, no other does.
const LIMIT: Duration = Duration::from_secs(3);
/// The answer is used for so long before it is asked for again.
const ASK_AGAIN: Duration = Duration::from_secs(600);

/// The Service as it was last seen.
#[derive(Default)]
pub(super) struct KubernetesService {
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    address: Option<ServiceAddress>,
    ask_at: Option<Instant>,
}

impl KubernetesService {
    /// Variables for every container; none while the address is not known: an empty one would be worse.
    pub async fn variables(&self, settings: &Settings, meta: &MetaClient) -> Vec<(String, String)> {
        if let Some((host, port)) = &settings.kubernetes_service {
            let variable = |name: &str, value: String| (format!("KUBERNETES_SERVICE_{name}"), value);
            return vec![variable("HOST", host.clone()), variable("PORT", port.to_string())];
        }
        let mut known = self.known.lock().await;
        if known.ask_at.is_none_or(|at| at <= Instant::now()) {
            match tokio::time::timeout(LIMIT, ask(meta)).await {
                Ok(Some(address)) => {
                    known.address = Some(address);
                    known.ask_at = Some(Instant::now() + ASK_AGAIN);
                }
                // Who says at once that there is none may be asked at any time.
                Ok(None) => {}
                Err(_) => known.ask_at = Some(Instant::now() + ASK_AGAIN),
            }
        }
        known.address.as_ref().map(ServiceAddress::variables).unwrap_or_default()
    }
}

async fn ask(meta: &MetaClient) -> Option<ServiceAddress> {
    let service = meta.get::<Service>(NAMESPACE, wire::kind::SERVICE, NAME).await.ok().flatten()?;
    if let Some(address) = ServiceAddress::of_service(&service) {
        return Some(address);
    }
    let endpoints = meta.get::<Endpoints>(NAMESPACE, wire::kind::ENDPOINTS, NAME).await.ok().flatten()?;
    ServiceAddress::of_endpoints(&endpoints)
}
