//! Our records on their way to the API: gathered, then written, several at a time.

use futures_util::StreamExt;
use futures_util::stream;
use serde_json::json;
use tracing::{debug, warn};

use super::{API_VERSION, GROUP, Key, RETRY, Record, Records};
use crate::kubernetes::kinds::Kind;
use crate::kubernetes::{Kubernetes, KubernetesError};

/// Records that are written at the same time.
const AT_ONCE: usize = 16;

impl Records {
    /// Writes what has changed; what fails is kept for the next time.
    pub(super) async fn write_all(&self, kubernetes: &Kubernetes) {
        if self.shared.reading.borrow().missing {
            return;
        }
        let dirty = std::mem::take(&mut self.state().dirty);
        let written = stream::iter(dirty).map(|(key, (record, gone))| self.write_one(kubernetes, key, record, gone));
        let failures = written.buffer_unordered(AT_ONCE).filter(|written| std::future::ready(!written)).count().await;
        if failures > 0 {
            warn!(failures, "records of what nodes have could not be written; tried again");
            tokio::time::sleep(RETRY).await;
            self.shared.changed.notify_one();
        }
    }

    /// Whether it was written.
    async fn write_one(&self, kubernetes: &Kubernetes, key: Key, record: Record, gone: bool) -> bool {
        let node = &key.0;
        let written =
            if gone { remove(kubernetes, node, &record).await } else { write(kubernetes, node, &record).await };
        let Err(error) = written else { return true };
        debug!(node, object = record.name, %error, "a record could not be written; tried again");
        // A newer change of the same record wins.
        self.state().dirty.entry(key).or_insert((record, gone));
        false
    }
}

fn path(record: &Record) -> (String, &'static str) {
    match record.namespace.as_str() {
        "" => (format!("{GROUP}/clusterobjectsyncs"), "ClusterObjectSync"),
        namespace => (format!("{GROUP}/namespaces/{namespace}/objectsyncs"), "ObjectSync"),
    }
}

async fn write(kubernetes: &Kubernetes, node: &str, record: &Record) -> Result<(), KubernetesError> {
    let (list, kind) = path(record);
    let name = format!("{node}.{}", record.uid);
    let status = json!({"status": {"objectResourceVersion": record.version.to_string()}}).to_string();
    let status_path = format!("{list}/{name}/status");
    let patch = || kubernetes.patch(&status_path, "merge-patch", status.clone());
    match patch().await {
        Err(error) if error.code() == 404 => {}
        result => return result.map(drop),
    }
    let api_version = Kind::named(&record.kind).map_or("v1", |kind| kind.api_version);
    let object = json!({
        "apiVersion": API_VERSION,
        "kind": kind,
        "metadata": {"name": name},
        "spec": {"objectAPIVersion": api_version, "objectKind": record.kind, "objectName": record.name},
    });
    match kubernetes.create(&list, object.to_string()).await {
        Ok(_) => patch().await.map(drop),
        Err(error) if error.code() == 409 => patch().await.map(drop),
        // The namespace is gone or goes, and with it what the record is about.
        Err(error) if is_without_namespace(&error) => Ok(()),
        Err(error) => Err(error),
    }
}

/// The same codes say that the kind is not known, or that cloudcore may not write it.
fn is_without_namespace(error: &KubernetesError) -> bool {
    let KubernetesError::Refused(status) = error else { return false };
    let is_namespace = status.details.as_ref().is_some_and(|details| details.kind == "namespaces");
    match status.code {
        404 => is_namespace,
        403 => status.message.contains("because it is being terminated"),
        _ => false,
    }
}

async fn remove(kubernetes: &Kubernetes, node: &str, record: &Record) -> Result<(), KubernetesError> {
    let (list, _) = path(record);
    match kubernetes.delete(&format!("{list}/{node}.{}", record.uid), "{}").await {
        Err(error) if error.code() != 404 => Err(error),
        _ => Ok(()),
    }
}
