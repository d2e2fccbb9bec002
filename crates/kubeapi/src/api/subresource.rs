//! What is special about subresources, and the reviews that store nothing.

use serde_json::{Value, json};

use super::{Action, Api, ResourceRef, User, WriteOptions};
use crate::meta;
use crate::storage::{Expect, WriteError};
use crate::{ApiError, types, validate};

impl Api {
    /// What a write to a subresource changes: the rest of the object stays.
    pub(super) fn merge_sub(&self, what: &ResourceRef, current: &Value, object: &mut Value) -> Result<(), ApiError> {
        let resource = &what.resource;
        let keep_all_but = |object: &mut Value, path: &str| {
            let new = object.pointer(path).cloned().unwrap_or(Value::Null);
            let mut kept = current.clone();
            let mut parts: Vec<&str> = path.split('/').skip(1).collect();
            let field = parts.pop().unwrap_or_default();
            // Indexing makes the parents that are missing.
            let place = parts.into_iter().fold(&mut kept, |place, part| &mut place[part]);
            if new.is_null() {
                place.as_object_mut().map(|fields| fields.remove(field));
            } else {
                place[field] = new;
            }
            *object = kept;
        };
        match what.subresource.as_str() {
            "" => {
                if resource.has("status") && resource.plural != "customresourcedefinitions" {
                    match &current["status"] {
                        Value::Null => object.as_object_mut().map(|fields| fields.remove("status")),
                        status => object.as_object_mut().map(|fields| fields.insert("status".into(), status.clone())),
                    };
                }
                if resource.plural == "certificatesigningrequests" {
                    object["spec"] = current["spec"].clone();
                }
            }
            "status" => {
                let approvals = current["status"]["conditions"].clone();
                keep_all_but(object, "/status");
                if resource.plural == "certificatesigningrequests"
                    && object["status"]["conditions"].is_null()
                    && !approvals.is_null()
                {
                    object["status"]["conditions"] = approvals;
                }
            }
            "approval" => keep_all_but(object, "/status/conditions"),
            "finalize" => keep_all_but(object, "/spec/finalizers"),
            "ephemeralcontainers" => keep_all_but(object, "/spec/ephemeralContainers"),
            "resize" => *object = resized(current, object),
            other => return Err(ApiError::not_implemented(&format!("writing {}/{other}", resource.plural))),
        }
        Ok(())
    }

    pub(super) async fn create_sub(
        &self,
        what: &ResourceRef,
        body: Value,
        options: &WriteOptions,
    ) -> Result<Value, ApiError> {
        match (what.resource.plural.as_str(), what.subresource.as_str()) {
            ("pods", "binding") => self.bind(what, &body, options).await,
            ("pods", "eviction") => self.evict(what, &body, options).await,
            ("serviceaccounts", "token") => {
                let account = ResourceRef { subresource: String::new(), ..what.clone() };
                let account = self.get(&account)?;
                let kind = types::of_kind("authentication.k8s.io/v1", "TokenRequest");
                if let Some(why) = kind.and_then(|kind| types::misfit(kind, &body)) {
                    return Err(ApiError::bad_request(format!("the TokenRequest cannot be handled: {why}")));
                }
                self.check_bound_object(what, &body)?;
                self.authority().issue_token(&account, body)
            }
            (plural, sub) => Err(ApiError::not_implemented(&format!("creating {plural}/{sub}"))),
        }
    }

    /// Assigns a pod to a node.
    async fn bind(&self, what: &ResourceRef, binding: &Value, options: &WriteOptions) -> Result<Value, ApiError> {
        let node = binding["target"]["name"].as_str().unwrap_or_default();
        if node.is_empty() {
            let cause = crate::error::Cause::required("target.name", "");
            return Err(ApiError::invalid("Binding", "", &what.name, &[cause]));
        }
        let success = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201});
        let pod = ResourceRef { subresource: String::new(), ..what.clone() };
        loop {
            let (mut object, revision) = self.current(&pod).await?;
            let refuse = |why: &str| Err(ApiError::conflict("pods/binding", "", &what.name, why));
            if meta::is_terminating(&object) {
                return refuse(&format!("pod {} is being deleted, cannot be assigned to a host", what.name));
            }
            if let Some(old) = object["spec"]["nodeName"].as_str().filter(|old| !old.is_empty()) {
                return refuse(&format!("pod {} is already assigned to node \"{old}\"", what.name));
            }
            object["spec"]["nodeName"] = json!(node);
            let scheduled = json!({"type": "PodScheduled", "status": "True", "lastProbeTime": null, "lastTransitionTime": meta::now()});
            set_condition(&mut object["status"], scheduled);
            if options.dry_run {
                return Ok(success);
            }
            match self.store(&pod, pod.key(), Expect::Revision(revision), object).await {
                Ok(_) => return Ok(success),
                Err(WriteError::Unexpected) => {}
                Err(WriteError::Failed(error)) => return Err(error),
            }
        }
    }

    /// A token bound to a pod or secret is issued only while that exists with the same uid.
    fn check_bound_object(&self, what: &ResourceRef, request: &Value) -> Result<(), ApiError> {
        let bound = &request["spec"]["boundObjectRef"];
        let plural = match bound["kind"].as_str() {
            None | Some("") => return Ok(()),
            Some("Pod") => "pods",
            Some("Secret") => "secrets",
            Some("Node") => "nodes",
            Some(kind) => {
                return Err(ApiError::bad_request(format!(
                    "cannot bind token for serviceaccount to object of type {kind}"
                )));
            }
        };
        let namespace = if plural == "nodes" { "" } else { what.namespace.as_str() };
        let object = self.get(&self.reference("", plural, namespace, bound["name"].as_str().unwrap_or_default())?)?;
        let uid = bound["uid"].as_str().unwrap_or_default();
        if !uid.is_empty() && uid != meta::uid(&object) {
            let why = format!(
                "the UID in the bound object reference ({uid}) does not match the UID in record. The object might have been deleted and then recreated"
            );
            return Err(ApiError::conflict(plural, "", meta::name(&object), &why));
        }
        Ok(())
    }

    /// `autoscaling/v1` Scale of an object that has one.
    pub(super) async fn scale(&self, what: &ResourceRef) -> Result<Value, ApiError> {
        let (object, _) = self.current(what).await?;
        let paths = ScalePaths::of(what)?;
        let selector = match object.pointer(&paths.selector) {
            Some(Value::String(text)) => text.clone(),
            Some(selector) => selector_text(selector),
            None => String::new(),
        };
        Ok(json!({
            "kind": "Scale",
            "apiVersion": "autoscaling/v1",
            "metadata": {
                "name": what.name,
                "namespace": what.namespace,
                "uid": meta::uid(&object),
                "resourceVersion": meta::resource_version(&object),
                "creationTimestamp": object["metadata"]["creationTimestamp"],
            },
            "spec": {"replicas": object.pointer(&paths.spec).and_then(Value::as_i64).unwrap_or_default()},
            "status": {
                "replicas": object.pointer(&paths.status).and_then(Value::as_i64).unwrap_or_default(),
                "selector": selector,
            },
        }))
    }

    pub(super) async fn set_scale(
        &self,
        what: &ResourceRef,
        current: Value,
        revision: u64,
        scale: &Value,
        options: &WriteOptions,
    ) -> Result<Value, ApiError> {
        let version = meta::resource_version(scale);
        if !version.is_empty() && version != revision.to_string() {
            return Err(what.modified());
        }
        let paths = ScalePaths::of(what)?;
        let replicas = &scale["spec"]["replicas"];
        let replicas = if replicas.is_null() { json!(0) } else { replicas.clone() };
        let mut causes = Vec::new();
        validate::non_negative("spec.replicas", &replicas, &mut causes);
        if !causes.is_empty() {
            return Err(ApiError::invalid("Scale", "autoscaling", &what.name, &causes));
        }
        let mut object = current;
        set_at(&mut object, &paths.spec, replicas).ok_or_else(|| {
            ApiError::bad_request(format!("{} has no place for replicas at {}", what.name, paths.spec))
        })?;
        let main = ResourceRef { subresource: String::new(), ..what.clone() };
        Box::pin(self.update(&main, object, options)).await?;
        self.scale(what).await
    }

    /// Requests that are answered and not stored.
    pub(super) fn review(&self, user: &User, what: &ResourceRef, mut body: Value) -> Result<Value, ApiError> {
        super::write::check_shape(&what.resource, &mut body, &WriteOptions::default())?;
        let status = match what.resource.plural.as_str() {
            "selfsubjectreviews" => json!({"userInfo": user_info(user)}),
            "tokenreviews" => self.review_token(&body["spec"]),
            "selfsubjectaccessreviews" => self.access(user, &body["spec"]),
            "subjectaccessreviews" => {
                let spec = &body["spec"];
                let groups =
                    spec["groups"].as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned);
                let other = User {
                    name: spec["user"].as_str().unwrap_or_default().to_owned(),
                    groups: groups.collect(),
                    uid: String::new(),
                };
                self.access(&other, spec)
            }
            other => return Err(ApiError::not_implemented(other)),
        };
        body["status"] = status;
        body["apiVersion"] = json!(what.resource.api_version());
        body["kind"] = json!(what.resource.kind);
        Ok(body)
    }

    /// A token may be for other audiences than this API; the answer names those that the asker and the token have in common.
    fn review_token(&self, spec: &Value) -> Value {
        let wanted = spec["audiences"].as_array().into_iter().flatten().filter_map(Value::as_str);
        let wanted: Vec<&str> = wanted.collect();
        match self.authority().authenticate(self, spec["token"].as_str().unwrap_or_default(), &wanted) {
            Some((user, audiences)) => {
                json!({"authenticated": true, "user": user_info(&user), "audiences": audiences})
            }
            None => json!({"authenticated": false, "user": {}, "error": "the token is not valid"}),
        }
    }

    fn access(&self, user: &User, spec: &Value) -> Value {
        let attributes = &spec["resourceAttributes"];
        let text = |name: &str| attributes[name].as_str().unwrap_or_default();
        let other = &spec["nonResourceAttributes"];
        let action = Action {
            verb: if other.is_object() { other["verb"].as_str().unwrap_or_default() } else { text("verb") },
            group: text("group"),
            resource: text("resource"),
            subresource: text("subresource"),
            namespace: text("namespace"),
            name: text("name"),
            path: other["path"].as_str().unwrap_or_default(),
        };
        json!({"allowed": self.authority().authorize(self, user, &action)})
    }
}

/// The pod with what a resize may change: what its containers may use, and how that is done.
fn resized(current: &Value, object: &Value) -> Value {
    let mut kept = current.clone();
    for list in ["containers", "initContainers"] {
        let containers = kept["spec"].get_mut(list).and_then(Value::as_array_mut);
        for container in containers.into_iter().flatten() {
            let same = |other: &&Value| other["name"] == container["name"];
            let Some(new) = object["spec"][list].as_array().and_then(|list| list.iter().find(same)) else { continue };
            for field in ["resources", "resizePolicy"] {
                match &new[field] {
                    Value::Null => container.as_object_mut().map(|fields| fields.remove(field)),
                    value => container.as_object_mut().map(|fields| fields.insert(field.to_owned(), value.clone())),
                };
            }
        }
    }
    kept
}

fn user_info(user: &User) -> Value {
    json!({"username": user.name, "uid": user.uid, "groups": user.groups})
}

struct ScalePaths {
    spec: String,
    status: String,
    selector: String,
}

impl ScalePaths {
    fn of(what: &ResourceRef) -> Result<Self, ApiError> {
        if !what.resource.has("scale") {
            return Err(ApiError::no_such_path());
        }
        let pointer = |path: &Value, otherwise: &str| path.as_str().unwrap_or(otherwise).replace('.', "/");
        let custom = what.resource.custom.as_ref().map_or(&Value::Null, |custom| &custom.scale);
        Ok(Self {
            spec: pointer(&custom["specReplicasPath"], ".spec.replicas"),
            status: pointer(&custom["statusReplicasPath"], ".status.replicas"),
            selector: pointer(&custom["labelSelectorPath"], ".spec.selector"),
        })
    }
}

/// Sets what a JSON pointer leads to; parents that are missing are made. `None` when one of them is no object.
fn set_at(object: &mut Value, pointer: &str, value: Value) -> Option<()> {
    let mut place = object;
    for field in pointer.split('/').skip(1) {
        if place.is_null() {
            *place = json!({});
        }
        place = place.as_object_mut()?.entry(field).or_insert(Value::Null);
    }
    *place = value;
    Some(())
}

/// A label selector as a query has it.
fn selector_text(selector: &Value) -> String {
    let labels = selector["matchLabels"].as_object().into_iter().flatten();
    let mut parts: Vec<String> =
        labels.map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default())).collect();
    for expression in selector["matchExpressions"].as_array().into_iter().flatten() {
        let key = expression["key"].as_str().unwrap_or_default();
        let values: Vec<&str> =
            expression["values"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        parts.push(match expression["operator"].as_str() {
            Some("In") => format!("{key} in ({})", values.join(",")),
            Some("NotIn") => format!("{key} notin ({})", values.join(",")),
            Some("DoesNotExist") => format!("!{key}"),
            _ => key.to_owned(),
        });
    }
    parts.join(",")
}

/// Sets a condition by its type.
fn set_condition(status: &mut Value, condition: Value) {
    if !status.is_object() {
        *status = json!({});
    }
    let list = &mut status["conditions"];
    if !list.is_array() {
        *list = json!([]);
    }
    if let Some(list) = list.as_array_mut() {
        match list.iter_mut().find(|old| old["type"] == condition["type"]) {
            Some(old) => *old = condition,
            None => list.push(condition),
        }
    }
}
