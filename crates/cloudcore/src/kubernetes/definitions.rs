//! Kinds that somebody has to define first: custom resources.

use std::time::Duration;

use serde_json::Value;
use tracing::{error, info, warn};

use super::{Kubernetes, kinds};

/// The wait before the API is asked again.
const RETRY: Duration = Duration::from_secs(5);

/// Waits until the API knows this kind of this group and version. If it does not, that is said at once, with what follows from it, and `missing` is told;
/// the same when it is there in the end.
pub async fn defined(
    kubernetes: &Kubernetes,
    api_version: &str,
    plural: &str,
    consequence: &str,
    missing: impl Fn(bool) + Send,
) {
    let knows = |list: &Value| list["resources"].as_array().is_some_and(|all| all.iter().any(|r| r["name"] == plural));
    let group = api_version.split('/').next().unwrap_or_default();
    let mut told = false;
    loop {
        match kubernetes.get_value(&kinds::group(api_version)).await {
            Ok(list) if knows(&list) => break,
            Err(error) if error.code() != 404 => {
                warn!(plural, %error, "the kinds that the API knows cannot be read; tried again");
            }
            _ if !std::mem::replace(&mut told, true) => {
                error!(
                    kind = format!("{plural}.{group}"),
                    consequence,
                    "a CustomResourceDefinition that cloudcore needs is not installed: kubectl apply -f deploy/crds.yaml"
                );
                missing(true);
            }
            _ => {}
        }
        tokio::time::sleep(RETRY).await;
    }
    if told {
        info!(plural, "the CustomResourceDefinition is there now");
        missing(false);
    }
}
