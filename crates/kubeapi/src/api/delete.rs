//! Deleting: at once, after a grace period, or once finalizers are gone.

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use super::{Api, ListOptions, ResourceRef};
use crate::catalog::Resource;
use crate::meta;
use crate::storage::{Expect, WriteError};
use crate::{ApiError, WriteOptions};

/// How often a deletion is tried again when the object changes meanwhile.
const TRIES: usize = 8;
/// These namespaces cannot be deleted (as upstream).
const IMMORTAL: [&str; 3] = ["default", "kube-system", "kube-public"];

/// `metav1.DeleteOptions`.
#[derive(Clone, Debug, Default)]
pub struct DeleteOptions {
    /// How long a pod may take to end.
    pub grace_period_seconds: Option<i64>,
    /// `Background`, `Foreground` or `Orphan`.
    pub propagation_policy: String,
    /// Only the object with this uid.
    pub uid: String,
    /// Only the object in this version.
    pub resource_version: String,
    /// Check everything, delete nothing.
    pub dry_run: bool,
}

impl DeleteOptions {
    /// Reads the body of a DELETE request.
    ///
    /// # Errors
    /// A field has the wrong shape.
    pub fn parse(body: &Value) -> Result<Self, ApiError> {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let grace = &body["gracePeriodSeconds"];
        if !grace.is_null() && !grace.is_i64() {
            return Err(ApiError::bad_request("gracePeriodSeconds must be an integer"));
        }
        let mut propagation_policy = text(&body["propagationPolicy"]);
        if body["orphanDependents"] == true {
            propagation_policy = "Orphan".to_owned();
        }
        if !["", "Background", "Foreground", "Orphan"].contains(&propagation_policy.as_str()) {
            return Err(ApiError::bad_request(format!("unknown propagationPolicy {propagation_policy:?}")));
        }
        Ok(Self {
            grace_period_seconds: grace.as_i64(),
            propagation_policy,
            uid: text(&body["preconditions"]["uid"]),
            resource_version: text(&body["preconditions"]["resourceVersion"]),
            dry_run: body["dryRun"].as_array().is_some_and(|list| !list.is_empty()),
        })
    }
}

impl Api {
    /// Deletes an object: it is gone afterwards, or marked as terminating until its node or its finalizers let it go. The
    /// second value tells whether it is gone.
    ///
    /// # Errors
    /// 404 when it is not there, 409 when a precondition does not hold.
    pub async fn delete(&self, what: &ResourceRef, options: &DeleteOptions) -> Result<(Value, bool), ApiError> {
        if what.resource.plural == "namespaces" && IMMORTAL.contains(&what.name.as_str()) {
            return Err(ApiError::forbidden("namespaces", "", &what.name, "this namespace may not be deleted"));
        }
        let mut tries = TRIES;
        loop {
            let (current, revision) = self.current(what).await?;
            check_preconditions(what, &current, options)?;
            tries -= 1;
            match self.delete_at(what, current, revision, options).await {
                Err(error) if error.reason == "Conflict" && tries > 0 => {}
                result => return result,
            }
        }
    }

    /// Deletes every object that a list would show; those that are gone by then do not matter.
    ///
    /// # Errors
    /// The list fails, or an object cannot be deleted.
    pub async fn delete_collection(
        &self,
        what: &ResourceRef,
        list: &ListOptions,
        options: &DeleteOptions,
    ) -> Result<usize, ApiError> {
        let objects = self.list(what, list)?.items;
        let count = objects.len();
        for object in objects {
            match self.delete(&what.named(meta::namespace(&object), meta::name(&object)), options).await {
                Err(error) if !error.is_not_found() => return Err(error),
                _ => {}
            }
        }
        Ok(count)
    }

    async fn delete_at(
        &self,
        what: &ResourceRef,
        current: Value,
        revision: u64,
        options: &DeleteOptions,
    ) -> Result<(Value, bool), ApiError> {
        let mut object = current.clone();
        let grace = grace(&what.resource, &current, options);
        let finalizers = finalizers(&what.resource, &current, options);
        let keeps = grace > 0 || !finalizers.is_empty() || !self.may_go_now(&what.resource, &current);
        if options.dry_run {
            return Ok((current, !keeps));
        }
        if !keeps {
            return Ok((self.remove(what, revision, current).await?, true));
        }
        let before = current["metadata"]["deletionGracePeriodSeconds"].as_i64();
        let metadata = meta::metadata(&mut object);
        // A second deletion may only shorten the grace period.
        if before.is_none_or(|before| grace < before) {
            let from =
                metadata.get("deletionTimestamp").and_then(Value::as_str).and_then(|at| at.parse::<Timestamp>().ok());
            let begun = match (from, before) {
                (Some(at), Some(before)) => at - SignedDuration::from_secs(before),
                _ => Timestamp::now(),
            };
            let end = begun + SignedDuration::from_secs(grace);
            metadata.insert("deletionTimestamp".into(), json!(meta::time(end)));
            metadata.insert("deletionGracePeriodSeconds".into(), json!(grace));
            if let Some(generation) = metadata.get("generation").and_then(Value::as_i64) {
                metadata.insert("generation".into(), json!(generation + 1));
            }
        }
        if finalizers.is_empty() {
            metadata.remove("finalizers");
        } else {
            metadata.insert("finalizers".into(), json!(finalizers));
        }
        if what.resource.plural == "namespaces" {
            object["status"]["phase"] = json!("Terminating");
        }
        if object == current {
            return Ok((object, false));
        }
        match self.store(what, what.key(), Expect::Revision(revision), object).await {
            Ok(object) => Ok((object, false)),
            Err(WriteError::Unexpected) => Err(what.modified()),
            Err(WriteError::Failed(error)) => Err(error),
        }
    }

    /// Whether an object that terminates and has no finalizers may go with an update.
    pub(super) fn may_go(&self, resource: &Resource, object: &Value) -> bool {
        object["metadata"]["deletionGracePeriodSeconds"].as_i64().unwrap_or_default() == 0
            && self.may_go_now(resource, object)
    }

    /// A namespace goes when its own list of finalizers is empty too.
    fn may_go_now(&self, resource: &Resource, object: &Value) -> bool {
        resource.plural != "namespaces" || object["spec"]["finalizers"].as_array().is_none_or(Vec::is_empty)
    }

    /// Evicts a pod: a deletion that a client asks for by another name.
    pub(super) async fn evict(
        &self,
        what: &ResourceRef,
        eviction: &Value,
        options: &WriteOptions,
    ) -> Result<Value, ApiError> {
        let body = if eviction["deleteOptions"].is_object() {
            &eviction["deleteOptions"]
        } else {
            &eviction["delete_options"]
        };
        let mut delete = DeleteOptions::parse(body)?;
        delete.dry_run |= options.dry_run;
        let pod = ResourceRef { subresource: String::new(), ..what.clone() };
        self.delete(&pod, &delete).await?;
        Ok(json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201}))
    }
}

/// How long the object may go on: only a pod on a node that has not ended has a grace period.
fn grace(resource: &Resource, object: &Value, options: &DeleteOptions) -> i64 {
    let runs = resource.plural == "pods"
        && resource.group.is_empty()
        && object["spec"]["nodeName"].as_str().is_some_and(|node| !node.is_empty())
        && !matches!(object["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
    if !runs {
        return 0;
    }
    let own = object["spec"]["terminationGracePeriodSeconds"].as_i64().unwrap_or(30);
    options.grace_period_seconds.unwrap_or(own).max(0)
}

fn finalizers(resource: &Resource, object: &Value, options: &DeleteOptions) -> Vec<Value> {
    let mut list = object["metadata"]["finalizers"].as_array().cloned().unwrap_or_default();
    if resource.plural == "namespaces" {
        return list;
    }
    list.retain(|f| match options.propagation_policy.as_str() {
        "Background" => f != "foregroundDeletion" && f != "orphan",
        "Foreground" => f != "orphan",
        "Orphan" => f != "foregroundDeletion",
        _ => true,
    });
    let add = match options.propagation_policy.as_str() {
        "Foreground" => "foregroundDeletion",
        "Orphan" => "orphan",
        _ => return list,
    };
    if !list.iter().any(|f| f == add) {
        list.push(json!(add));
    }
    list
}

fn check_preconditions(what: &ResourceRef, current: &Value, options: &DeleteOptions) -> Result<(), ApiError> {
    let conflict = |field: &str, wanted: &str, found: &str| {
        let why = format!("Precondition failed: {field} in precondition: {wanted}, {field} in object meta: {found}");
        Err(ApiError::conflict(&what.resource.plural, &what.resource.group, &what.name, &why))
    };
    if !options.uid.is_empty() && options.uid != meta::uid(current) {
        return conflict("UID", &options.uid, meta::uid(current));
    }
    if !options.resource_version.is_empty() && options.resource_version != meta::resource_version(current) {
        return conflict("ResourceVersion", &options.resource_version, meta::resource_version(current));
    }
    Ok(())
}
