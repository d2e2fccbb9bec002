//! Which container is meant, and what is to be said when there is none.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{ContainerStatus, PodStatus};
use tokio::sync::broadcast;

use super::AccessError;
use crate::logs::read::Follow;
use crate::runtime::{Runtime, RuntimeError};

/// Between questions to a runtime that does not answer.
const RETRY: Duration = Duration::from_secs(1);

/// The container whose log is wanted, as the kubelet chooses it: the running one, else the one that ended last.
pub(super) fn log_container(
    status: &PodStatus,
    pod: &str,
    container: &str,
    previous: bool,
) -> Result<String, AccessError> {
    let refuse = |text: String| Err(AccessError::Refused(format!("container {container:?} in pod {pod:?} {text}")));
    let Some(found) = find(status, container) else { return refuse("is not available".into()) };
    let id = |id: &Option<String>| id.as_deref().and_then(|id| id.split_once("://")).map(|(_, id)| id.to_owned());
    let state = found.state.as_ref();
    let waiting = state.and_then(|state| state.waiting.as_ref());
    let running = state.is_some_and(|state| state.running.is_some());
    let terminated = state.and_then(|state| state.terminated.as_ref());
    let last = found.last_state.as_ref().and_then(|state| state.terminated.as_ref());
    let last_id = last.and_then(|last| id(&last.container_id));
    if previous {
        return last_id.ok_or_else(|| {
            AccessError::Refused(format!("previous terminated container {container:?} in pod {pod:?} not found"))
        });
    }
    if running {
        if let Some(id) = id(&found.container_id) {
            return Ok(id);
        }
    } else if let Some(terminated) = terminated {
        return id(&terminated.container_id).or(last_id).map_or_else(|| refuse("is terminated".into()), Ok);
    } else if last.is_some() {
        return last_id.map_or_else(|| refuse("is terminated".into()), Ok);
    }
    match waiting.map(|waiting| waiting.reason.as_deref().unwrap_or_default()) {
        Some("ErrImagePull") => refuse("is waiting to start: image can't be pulled".into()),
        Some("ImagePullBackOff") => refuse("is waiting to start: trying and failing to pull image".into()),
        Some(reason) => refuse(format!("is waiting to start: {reason}")),
        None => refuse("is waiting to start - no logs yet".into()),
    }
}

/// The status of a container of whatever kind.
fn find<'a>(status: &'a PodStatus, container: &str) -> Option<&'a ContainerStatus> {
    let lists = [&status.container_statuses, &status.init_container_statuses, &status.ephemeral_container_statuses];
    lists.into_iter().flatten().flatten().find(|status| status.name == container)
}

/// The id of a running container.
pub(super) fn running(status: &PodStatus, container: &str) -> Option<String> {
    let found = find(status, container)?;
    found.state.as_ref()?.running.as_ref()?;
    found.container_id.as_deref()?.split_once("://").map(|(_, id)| id.to_owned())
}

/// Watches for the end of a container.
pub(super) struct UntilEnded {
    runtime: Arc<Runtime>,
    changes: broadcast::Receiver<Arc<str>>,
    uid: String,
    id: String,
    /// The runtime is being asked: whether the container runs.
    asking: Option<Asking>,
}

type Asking = Pin<Box<dyn Future<Output = Result<bool, RuntimeError>> + Send>>;

impl UntilEnded {
    /// Looks at once, and after each change of this pod.
    pub fn new(runtime: Arc<Runtime>, changes: broadcast::Receiver<Arc<str>>, uid: String, id: String) -> Self {
        let mut until = Self { runtime, changes, uid, id, asking: None };
        until.ask(Duration::ZERO);
        until
    }

    fn ask(&mut self, pause: Duration) {
        let (runtime, id) = (Arc::clone(&self.runtime), self.id.clone());
        self.asking = Some(Box::pin(async move {
            tokio::time::sleep(pause).await;
            runtime.is_running(&id).await
        }));
    }
}

impl Follow for UntilEnded {
    fn ended(&mut self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(async {
            loop {
                // May be dropped at any await, over and over while the log grows: a question stays asked.
                if let Some(asking) = &mut self.asking {
                    match asking.await {
                        Ok(false) => return,
                        Ok(true) => self.asking = None,
                        Err(_) => self.ask(RETRY),
                    }
                    continue;
                }
                match self.changes.recv().await {
                    Ok(uid) if !uid.is_empty() && *uid != *self.uid => {}
                    // This pod, any pod, or too many to be told one by one.
                    Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => self.ask(Duration::ZERO),
                    // The agent ends.
                    Err(broadcast::error::RecvError::Closed) => return,
                }
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn the_container_that_the_kubelet_chooses() {
        let terminated = |id: &str| json!({"terminated": {"exitCode": 0, "containerID": id}});
        let running = json!({"running": {}});
        let waiting = |reason: &str| json!({"waiting": {"reason": reason}});
        let waits = |why: &str| Err(format!("container \"c\" in pod \"p\" is waiting to start: {why}"));
        let previous = || Err("previous terminated container \"c\" in pod \"p\" not found".to_owned());
        let none = json!(null);
        let table: Vec<(Value, Value, bool, Result<&str, String>)> = vec![
            (running.clone(), none.clone(), false, Ok("now")),
            (running.clone(), terminated("r://old"), true, Ok("old")),
            (running, none.clone(), true, previous()),
            (terminated("r://end"), terminated("r://old"), false, Ok("end")),
            (terminated(""), terminated("r://old"), false, Ok("old")),
            (terminated(""), none.clone(), false, Err("container \"c\" in pod \"p\" is terminated".into())),
            (waiting("CrashLoopBackOff"), terminated("r://old"), false, Ok("old")),
            (waiting("CrashLoopBackOff"), terminated("r://old"), true, Ok("old")),
            (waiting("ErrImagePull"), none.clone(), false, waits("image can't be pulled")),
            (waiting("ImagePullBackOff"), none.clone(), false, waits("trying and failing to pull image")),
            (waiting("ContainerCreating"), none.clone(), false, waits("ContainerCreating")),
            (none.clone(), none, false, Err("container \"c\" in pod \"p\" is waiting to start - no logs yet".into())),
        ];
        for (state, last, previous, expected) in table {
            let status: PodStatus = serde_json::from_value(json!({"containerStatuses": [{
                "name": "c", "image": "i", "imageID": "", "ready": false, "restartCount": 0,
                "containerID": "r://now", "state": state, "lastState": last,
            }]}))
            .unwrap();
            let found = log_container(&status, "p", "c", previous).map_err(|error| error.to_string());
            assert_eq!(found, expected.map(str::to_owned), "{state} {last}");
        }
        let error = log_container(&PodStatus::default(), "p", "c", false).unwrap_err();
        assert_eq!(error.to_string(), "container \"c\" in pod \"p\" is not available");
    }
}
