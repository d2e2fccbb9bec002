//! The Job controller: runs pods until enough of them have succeeded, or too many failed.
//!
//! [`plan`] decides, [`count`] counts, [`pods`] knows the Job's pods, this file carries out: pods first, then the status, and
//! only then the finalizers of what the status has noted.

pub mod count;
pub mod plan;
pub mod pods;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use kubeapi::ApiError;
use serde_json::{Value, json};

use crate::claim::{claim_pods, write_status};
use crate::client::{Client, DeleteOptions, JOBS, PODS};
use crate::events::Recorder;
use crate::informer::{Cache, Change, Informer};
use crate::object::{Key, Object};
use crate::queue::WorkQueue;
use crate::reconcile::Reconcile;
use count::Failures;
use pods::TRACKING;

const KIND: (&str, &str) = ("batch/v1", "Job");

/// The controller.
pub struct Jobs {
    client: Client,
    events: Recorder,
    jobs: Arc<Cache>,
    pods: Arc<Cache>,
    /// Of Jobs that are not over, with the Job's UID.
    failures: HashMap<Key, (String, Failures)>,
}

/// Builds the controller and its queue.
pub fn new(client: Client, events: &Recorder, jobs: &mut Informer, pods: &mut Informer) -> (Jobs, Arc<WorkQueue>) {
    let queue = Arc::new(WorkQueue::default());
    let for_jobs = queue.clone();
    jobs.on_change(move |change| for_jobs.add(change.object().key()));
    let (for_pods, all) = (queue.clone(), jobs.cache());
    pods.on_change(move |change| {
        let pod = change.object();
        match pod.controller() {
            Some(owner) if owner.kind == "Job" => for_pods.add(Key::new(pod.namespace(), owner.name)),
            Some(_) => {}
            None if pod.has_finalizer(TRACKING) || matches!(change, Change::Set { old: None, .. }) => {
                for job in all.in_namespace(pod.namespace()) {
                    if crate::selector::matches(job.at("/spec/selector"), pod.labels()) {
                        for_pods.add(job.key());
                    }
                }
            }
            None => {}
        }
    });
    let events = events.component("job-controller");
    (Jobs { client, events, jobs: jobs.cache(), pods: pods.cache(), failures: HashMap::new() }, queue)
}

impl Reconcile for Jobs {
    const NAME: &'static str = "job-controller";

    async fn reconcile(&mut self, key: &Key) -> Result<Option<Duration>, ApiError> {
        let Some(job) = self.jobs.get(key) else {
            self.failures.remove(key);
            return self.let_go(key).await;
        };
        let own = self.claim_pods(&job).await?;
        let plan = plan::plan(&job, &own, self.failures(&job), Timestamp::now());
        if plan::is_finished(&job) {
            self.failures.remove(key);
        }
        if plan.expired {
            let options = DeleteOptions { propagation: "Foreground", ..DeleteOptions::only(&job) };
            self.client.delete(&JOBS, key, options).await?;
            return Ok(None);
        }
        for pod in &plan.surplus {
            if let Some(pod) = self.untrack(pod).await? {
                self.delete(&job, &pod).await?;
            }
        }
        for pod in &plan.stop {
            self.delete(&job, pod).await?;
        }
        for index in &plan.create {
            self.create(&job, *index).await?;
        }
        if !write_status(&self.client, &JOBS, &self.jobs, &job, plan.status).await? {
            return self.let_go(key).await;
        }
        for (warning, reason, message) in plan.tell {
            if warning {
                self.events.warning(&job, KIND, &reason, message);
            } else {
                self.events.normal(&job, KIND, &reason, message);
            }
        }
        for pod in &plan.release {
            self.untrack(pod).await?;
        }
        Ok(plan.wait)
    }
}

impl Jobs {
    /// What is remembered of this very Job.
    fn failures(&mut self, job: &Object) -> &mut Failures {
        let (uid, failures) = self.failures.entry(job.key()).or_default();
        if uid != job.uid() {
            (*uid, *failures) = (job.uid().to_owned(), Failures::default());
        }
        failures
    }

    async fn claim_pods(&self, job: &Object) -> Result<Vec<Object>, ApiError> {
        let claimed = claim_pods(&self.client, &self.pods, job, KIND, |_| true).await?;
        for pod in &claimed.released {
            self.untrack(pod).await?;
        }
        Ok(claimed.own)
    }

    /// The Job is gone: nobody counts its pods any more.
    async fn let_go(&self, key: &Key) -> Result<Option<Duration>, ApiError> {
        for pod in self.pods.in_namespace(&key.namespace) {
            let of_job = pod.controller().is_some_and(|owner| owner.kind == "Job" && owner.name == key.name);
            if of_job && pod.has_finalizer(TRACKING) {
                self.untrack(&pod).await?;
            }
        }
        Ok(None)
    }

    async fn create(&self, job: &Object, index: Option<i64>) -> Result<(), ApiError> {
        match self.client.create(&PODS, pods::make(job, index)).await {
            Ok(pod) => {
                self.pods.learn(&pod);
                self.events.normal(job, KIND, "SuccessfulCreate", format!("Created pod: {}", pod.name()));
                Ok(())
            }
            Err(error) => {
                self.events.warning(job, KIND, "FailedCreate", format!("Error creating: {error}"));
                Err(error)
            }
        }
    }

    async fn delete(&self, job: &Object, pod: &Object) -> Result<(), ApiError> {
        match self.client.delete(&PODS, &pod.key(), DeleteOptions::only(pod)).await {
            Ok(last) => {
                if let Some(last) = last {
                    self.pods.learn(&last);
                }
                self.events.normal(job, KIND, "SuccessfulDelete", format!("Deleted pod: {}", pod.name()));
                Ok(())
            }
            Err(error) if error.is_not_found() => Ok(()),
            Err(error) => {
                self.events.warning(job, KIND, "FailedDelete", format!("Error deleting: {error}"));
                Err(error)
            }
        }
    }

    /// Takes the finalizer off; the pod as it is then, `None` if it is gone.
    async fn untrack(&self, pod: &Object) -> Result<Option<Object>, ApiError> {
        if !pod.has_finalizer(TRACKING) {
            return Ok(Some(pod.clone()));
        }
        let rest: Vec<&Value> = pod.list("/metadata/finalizers").iter().filter(|f| *f != TRACKING).collect();
        let patch = json!({"metadata": {
            "uid": pod.uid(), "resourceVersion": pod.text("/metadata/resourceVersion"), "finalizers": rest,
        }});
        match self.client.patch(&PODS, &pod.key(), None, patch).await {
            Ok(new) => {
                let stays = !new.list("/metadata/finalizers").is_empty()
                    || new.int("/metadata/deletionGracePeriodSeconds") != Some(0);
                if stays {
                    self.pods.learn(&new);
                }
                Ok(stays.then_some(new))
            }
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }
}
