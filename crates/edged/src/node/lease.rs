//! The lease that tells the cloud that this node lives (`kube-node-lease`).

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, OwnerReference};
use rand::RngExt as _;
use tokio::sync::watch;
use wire::{Content, kind, operation};

use crate::meta::{MetaClient, MetaError};
use crate::settings::Settings;

const NAMESPACE: &str = "kube-node-lease";
/// Seconds after which the cloud takes the node for gone.
const DURATION: i32 = 40;
/// Between renewals.
const RENEW: Duration = Duration::from_secs(10);
/// First and longest pause after a failure.
const RETRY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(7));

/// Keeps the lease for as long as it is run. `uid` is the Node's, once known: the lease is created only then, so that it
/// goes with the node.
pub(super) async fn keep(
    settings: &Settings,
    meta: &MetaClient,
    mut uid: watch::Receiver<Option<String>>,
    mut online: watch::Receiver<()>,
) {
    let mut held: Option<Lease> = None;
    let mut retry = RETRY.0;
    loop {
        let Ok(owner) = uid.wait_for(Option::is_some).await.map(|uid| uid.clone()) else { return };
        let pause = match renew(settings, meta, held.take(), owner).await {
            Ok(lease) => {
                held = Some(lease);
                retry = RETRY.0;
                RENEW.mul_f64(1.0 + rand::rng().random_range(0.0..0.04))
            }
            Err(error) => {
                tracing::debug!(error = &error as &dyn std::error::Error, "lease not renewed");
                let pause = retry;
                retry = (retry * 2).min(RETRY.1);
                pause
            }
        };
        if super::pause_unless_online(pause, &mut online).await {
            retry = RETRY.0;
        }
    }
}

/// Renews the lease that is held, or finds or makes it.
async fn renew(
    settings: &Settings,
    meta: &MetaClient,
    held: Option<Lease>,
    owner: Option<String>,
) -> Result<Lease, MetaError> {
    let name = &settings.node_name;
    let resource = format!("{NAMESPACE}/{}/{name}", kind::LEASE);
    let found = match held {
        Some(lease) => Some(lease),
        None => meta.get::<Lease>(NAMESPACE, kind::LEASE, name).await?,
    };
    let (operation, lease) = match found {
        Some(lease) => (operation::UPDATE, renewed(lease, name)),
        None => (operation::INSERT, renewed(fresh(name, owner), name)),
    };
    let content = Content::json(&lease).map_err(|source| MetaError::Encode { resource: resource.clone(), source })?;
    let answer = meta.write(operation, &resource, content).await?;
    match answer {
        Some(answer) => answer.parse().map_err(|source| MetaError::Shape { resource, source }),
        None => Ok(lease),
    }
}

fn fresh(name: &str, owner: Option<String>) -> Lease {
    let owner = owner.filter(|uid| !uid.is_empty()).map(|uid| OwnerReference {
        api_version: "v1".into(),
        kind: "Node".into(),
        name: name.to_owned(),
        uid,
        ..Default::default()
    });
    Lease {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            namespace: Some(NAMESPACE.into()),
            owner_references: owner.map(|owner| vec![owner]),
            ..Default::default()
        },
        spec: None,
    }
}

fn renewed(mut lease: Lease, name: &str) -> Lease {
    lease.spec = Some(LeaseSpec {
        holder_identity: Some(name.to_owned()),
        lease_duration_seconds: Some(DURATION),
        renew_time: Some(MicroTime(Timestamp::now())),
        ..lease.spec.unwrap_or_default()
    });
    lease
}
