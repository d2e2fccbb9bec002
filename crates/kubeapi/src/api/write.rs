//! Creating and changing objects.

use bytes::Bytes;
use serde_json::{Value, json};

use super::{Api, ResourceRef, User, WriteOptions};
use crate::catalog::Resource;
use crate::meta;
use crate::patch::{self, PatchType};
use crate::storage::{Expect, NewState, WriteError};
use crate::{ApiError, defaults, schema, types, validate};

/// How often a patch is tried again when somebody else was faster.
const PATCH_TRIES: usize = 8;
/// How often a generated name is tried again when it is taken.
const NAME_TRIES: usize = 8;

/// What a write led to.
#[derive(Debug)]
pub struct Outcome {
    /// The object as it is now.
    pub object: Value,
    /// It was created by this request.
    pub created: bool,
}

impl Api {
    /// Creates an object, or does what a subresource that is created does (binding, eviction, token).
    ///
    /// # Errors
    /// 409 when the name is taken, 422 when a field is wrong, 404 when the namespace is missing.
    pub async fn create(
        &self,
        user: &User,
        what: &ResourceRef,
        object: Value,
        options: &WriteOptions,
    ) -> Result<Value, ApiError> {
        if !what.subresource.is_empty() {
            return self.create_sub(what, object, options).await;
        }
        if !what.resource.verbs.iter().any(|verb| verb == "get") {
            return self.review(user, what, object);
        }
        let base = object["metadata"]["generateName"].as_str().unwrap_or_default().to_owned();
        let mut tries = if meta::name(&object).is_empty() && !base.is_empty() { NAME_TRIES } else { 1 };
        loop {
            let mut object = object.clone();
            if meta::name(&object).is_empty() && !base.is_empty() {
                meta::metadata(&mut object).insert("name".into(), json!(meta::generate_name(&base)));
            }
            tries -= 1;
            match self.create_named(user, what, object, options).await {
                Err(error) if error.reason == "AlreadyExists" && tries > 0 => {}
                result => return result,
            }
        }
    }

    async fn create_named(
        &self,
        user: &User,
        what: &ResourceRef,
        mut object: Value,
        options: &WriteOptions,
    ) -> Result<Value, ApiError> {
        let resource = what.resource.as_ref();
        check_shape(resource, &mut object, options)?;
        let namespace = self.namespace_of(what, &object)?;
        let what = what.named(&namespace, meta::name(&object));
        let metadata = meta::metadata(&mut object);
        for field in ["resourceVersion", "deletionTimestamp", "deletionGracePeriodSeconds", "selfLink", "managedFields"]
        {
            metadata.remove(field);
        }
        if !namespace.is_empty() {
            metadata.insert("namespace".into(), json!(namespace));
        }
        metadata.insert("uid".into(), json!(meta::new_uid()));
        metadata.insert("creationTimestamp".into(), json!(meta::now()));
        if has_generation(resource, &object) {
            meta::metadata(&mut object).insert("generation".into(), json!(1));
        }
        // A Node may report its status when it registers; others begin without.
        if resource.has("status") && resource.plural != "nodes" {
            object.as_object_mut().map(|fields| fields.remove("status"));
        }
        defaults::for_create(self, user, resource, &mut object)?;
        self.check(&what, &mut object, None)?;
        if options.dry_run {
            return Ok(object);
        }
        let key = what.key();
        let stored = self.store(&what, key, Expect::Nothing, object).await;
        let created = match stored {
            Ok(object) => object,
            Err(WriteError::Unexpected) => {
                return Err(ApiError::already_exists(&resource.plural, &resource.group, &what.name));
            }
            Err(WriteError::Failed(error)) => return Err(error),
        };
        self.after_write(resource, &created);
        Ok(created)
    }

    /// Replaces an object or its subresource. A resource version in it must be the current one.
    ///
    /// # Errors
    /// 404 when it is not there, 409 when it changed meanwhile, 422 when a field is wrong.
    pub async fn update(&self, what: &ResourceRef, object: Value, options: &WriteOptions) -> Result<Value, ApiError> {
        let (current, revision) = self.current(what).await?;
        self.replace(what, current, revision, object, options).await
    }

    /// Patches an object or its subresource; tried again when somebody else was faster.
    ///
    /// # Errors
    /// As [`Api::update`], and 400 or 415 for patches that cannot be applied.
    pub async fn patch(
        &self,
        what: &ResourceRef,
        change: &Value,
        how: PatchType,
        options: &WriteOptions,
    ) -> Result<Value, ApiError> {
        let mut tries = PATCH_TRIES;
        loop {
            let (current, revision) = self.current(what).await?;
            let resource = &what.resource;
            let patched = if what.subresource == "scale" {
                patch::apply("autoscaling/v1", "Scale", &self.scale(what).await?, change, how)?
            } else {
                patch::apply(&resource.api_version(), &resource.kind, &current, change, how)?
            };
            tries -= 1;
            match self.replace(what, current, revision, patched, options).await {
                Err(error) if error.reason == "Conflict" && tries > 0 && !names_version(change, how) => {}
                result => return result,
            }
        }
    }

    async fn replace(
        &self,
        what: &ResourceRef,
        current: Value,
        revision: u64,
        mut object: Value,
        options: &WriteOptions,
    ) -> Result<Value, ApiError> {
        let resource = what.resource.as_ref();
        if what.subresource == "scale" {
            return self.set_scale(what, current, revision, &object, options).await;
        }
        check_shape(resource, &mut object, options)?;
        check_identity(what, &current, &object)?;
        let version = meta::resource_version(&object);
        if !version.is_empty() && version != revision.to_string() {
            return Err(what.modified());
        }
        keep_system_fields(&current, &mut object);
        self.merge_sub(what, &current, &mut object)?;
        let writes_spec = writes_spec(what);
        if writes_spec {
            defaults::for_update(resource, &current, &mut object);
        }
        if writes_spec && has_generation(resource, &object) && object["spec"] != current["spec"] {
            let generation = current["metadata"]["generation"].as_i64().unwrap_or(1);
            meta::metadata(&mut object).insert("generation".into(), json!(generation + 1));
        }
        self.check(what, &mut object, Some(&current))?;
        if options.dry_run || object == current {
            return Ok(object);
        }
        if meta::is_terminating(&object) && !meta::has_finalizers(&object) && self.may_go(resource, &object) {
            return self.remove(what, revision, object).await;
        }
        match self.store(what, what.key(), Expect::Revision(revision), object).await {
            Ok(object) => {
                self.after_write(resource, &object);
                Ok(object)
            }
            Err(WriteError::Unexpected) => Err(what.modified()),
            Err(WriteError::Failed(error)) => Err(error),
        }
    }

    /// Stores an object; its resource version is the new revision. The answer is what a reader gets, in the version that was asked for.
    pub(super) async fn store(
        &self,
        what: &ResourceRef,
        key: crate::storage::Key,
        expect: Expect,
        mut object: Value,
    ) -> Result<Value, WriteError> {
        object["apiVersion"] = json!(what.resource.api_version());
        object["kind"] = json!(what.resource.kind);
        let (mut kept, mut object) = self.as_kept(what, object).await.map_err(WriteError::Failed)?;
        check_kept(what, &kept).map_err(WriteError::Failed)?;
        if let Expect::Revision(revision) = expect {
            self.count_change(what, revision, &mut kept, &mut object).map_err(WriteError::Failed)?;
        }
        let change = Box::new(move |revision: u64| NewState { json: encode(&mut kept, revision), delete: false });
        let revision = self.storage().write(key, expect, change).await?;
        meta::metadata(&mut object).insert("resourceVersion".into(), json!(revision.to_string()));
        Ok(object)
    }

    /// A change in another version may change the spec that is kept although its own spec is the same; that counts too.
    fn count_change(
        &self,
        what: &ResourceRef,
        revision: u64,
        kept: &mut Value,
        object: &mut Value,
    ) -> Result<(), ApiError> {
        if what.resource.is_as_kept() || !writes_spec(what) || !has_generation(&what.resource, kept) {
            return Ok(());
        }
        let Some(stored) = self.storage().get(&what.key())?.filter(|stored| stored.revision == revision) else {
            return Ok(());
        };
        let stored = super::read::parse(&stored.json)?;
        let generation = |object: &Value| object["metadata"]["generation"].as_i64();
        let is_comparable = stored["apiVersion"] == kept["apiVersion"] && generation(&stored) == generation(kept);
        if is_comparable && stored["spec"] != kept["spec"] {
            let next = json!(generation(kept).unwrap_or(1) + 1);
            for object in [kept, object] {
                meta::metadata(object).insert("generation".into(), next.clone());
            }
        }
        Ok(())
    }

    /// Deletes an object for good.
    pub(super) async fn remove(&self, what: &ResourceRef, revision: u64, object: Value) -> Result<Value, ApiError> {
        let (mut kept, object) = self.as_kept(what, object).await?;
        let change = Box::new(move |revision: u64| NewState { json: encode(&mut kept, revision), delete: true });
        match self.storage().write(what.key(), Expect::Revision(revision), change).await {
            Ok(_) => {
                self.after_delete(&what.resource, &object);
                Ok(object)
            }
            Err(WriteError::Unexpected) => Err(what.modified()),
            Err(WriteError::Failed(error)) => Err(error),
        }
    }

    fn namespace_of(&self, what: &ResourceRef, object: &Value) -> Result<String, ApiError> {
        let named = meta::namespace(object);
        if !what.resource.namespaced {
            return Ok(String::new());
        }
        if !named.is_empty() && !what.namespace.is_empty() && named != what.namespace {
            return Err(ApiError::bad_request(format!(
                "the namespace of the provided object does not match the namespace sent on the request: {named} and {}",
                what.namespace
            )));
        }
        let namespace = if what.namespace.is_empty() { named } else { &what.namespace };
        let place = self.reference("", "namespaces", "", namespace)?;
        let found = self.get(&place)?;
        if meta::is_terminating(&found) {
            let why = format!("unable to create new content in namespace {namespace} because it is being terminated");
            return Err(ApiError::forbidden(&what.resource.plural, &what.resource.group, meta::name(object), &why));
        }
        Ok(namespace.to_owned())
    }

    fn check(&self, what: &ResourceRef, object: &mut Value, current: Option<&Value>) -> Result<(), ApiError> {
        let resource = &what.resource;
        let name = meta::name(object).to_owned();
        let mut causes = Vec::new();
        if let Some(custom) = &resource.custom {
            schema::prune(&custom.schema, object);
            schema::set_defaults(&custom.schema, object);
            schema::validate(&custom.schema, object, &mut causes);
        }
        validate::object(what, object, current, &mut causes);
        if causes.is_empty() { Ok(()) } else { Err(ApiError::invalid(&resource.kind, &resource.group, &name, &causes)) }
    }

    fn after_write(&self, resource: &Resource, object: &Value) {
        if resource.plural == "customresourcedefinitions" {
            self.define_custom(object);
        }
    }

    fn after_delete(&self, resource: &Resource, object: &Value) {
        if resource.plural == "customresourcedefinitions" {
            let group = object["spec"]["group"].as_str().unwrap_or_default();
            let plural = object["spec"]["names"]["plural"].as_str().unwrap_or_default();
            self.catalog().set_custom(group, plural, Vec::new());
        }
    }
}

/// What a conversion made of an object must fit the schema of the version that it is kept in: whoever reads that relies on it. An
/// object that is going may be as it is.
fn check_kept(what: &ResourceRef, kept: &Value) -> Result<(), ApiError> {
    let resource = &what.resource;
    let Some(custom) = resource.custom.as_ref().filter(|_| !resource.is_as_kept() && !meta::is_terminating(kept))
    else {
        return Ok(());
    };
    let mut causes = Vec::new();
    schema::validate(&custom.versions.kept_schema, kept, &mut causes);
    if causes.is_empty() {
        return Ok(());
    }
    Err(ApiError::invalid(&resource.kind, &resource.group, meta::name(kept), &causes))
}

/// Kind and version fit the path, every value fits its field; unknown fields are refused when the client wishes so, and dropped otherwise.
pub(super) fn check_shape(resource: &Resource, object: &mut Value, options: &WriteOptions) -> Result<(), ApiError> {
    if !object.is_object() {
        return Err(ApiError::bad_request("the body of the request must be a JSON object"));
    }
    for (field, expected) in [("kind", resource.kind.as_str()), ("apiVersion", &resource.api_version())] {
        match object[field].as_str() {
            None | Some("") => object[field] = json!(expected),
            Some(found) if found == expected => {}
            Some(found) => {
                return Err(ApiError::bad_request(format!(
                    "the {field} in the data ({found}) does not match the expected {field} ({expected})"
                )));
            }
        }
    }
    let cannot = |why: &str| {
        let kind = &resource.kind;
        let version = &resource.version;
        ApiError::bad_request(format!("{kind} in version \"{version}\" cannot be handled as a {kind}: {why}"))
    };
    let known = types::of_kind(&resource.api_version(), &resource.kind);
    let misfit = match known {
        Some(kind) => types::misfit(kind, object),
        None => types::of_metadata().and_then(|kind| types::misfit(kind, &object["metadata"])),
    };
    if let Some(why) = misfit {
        return Err(cannot(&why));
    }
    let unknown = match (&resource.custom, known) {
        (Some(custom), _) => schema::unknown_fields(&custom.schema, object),
        (None, Some(kind)) => types::unknown_fields(kind, object),
        (None, None) => Vec::new(),
    };
    if options.strict && !unknown.is_empty() {
        let list: Vec<String> = unknown.iter().map(|path| format!("unknown field \"{path}\"")).collect();
        return Err(cannot(&format!("strict decoding error: {}", list.join(", "))));
    }
    // Those of custom resources are dropped when the schema sets its defaults.
    if let Some(kind) = known.filter(|_| !unknown.is_empty()) {
        types::prune(kind, object);
    }
    Ok(())
}

fn check_identity(what: &ResourceRef, current: &Value, object: &Value) -> Result<(), ApiError> {
    let (name, namespace) = (meta::name(object), meta::namespace(object));
    if !name.is_empty() && name != what.name {
        return Err(ApiError::bad_request(format!(
            "the name of the object ({name}) does not match the name on the URL ({})",
            what.name
        )));
    }
    if !namespace.is_empty() && namespace != what.namespace {
        return Err(ApiError::bad_request(format!(
            "the namespace of the object ({namespace}) does not match the namespace on the request ({})",
            what.namespace
        )));
    }
    let uid = meta::uid(object);
    if !uid.is_empty() && uid != meta::uid(current) {
        let why =
            format!("Precondition failed: UID in precondition: {uid}, UID in object meta: {}", meta::uid(current));
        return Err(ApiError::conflict(&what.resource.plural, &what.resource.group, &what.name, &why));
    }
    Ok(())
}

/// What only the server sets stays as it is.
fn keep_system_fields(current: &Value, object: &mut Value) {
    const FIELDS: [&str; 8] = [
        "name",
        "namespace",
        "uid",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "generation",
        "resourceVersion",
    ];
    let metadata = meta::metadata(object);
    metadata.remove("managedFields");
    metadata.remove("selfLink");
    for field in FIELDS {
        match &current["metadata"][field] {
            Value::Null => metadata.remove(field),
            value => metadata.insert(field.to_owned(), value.clone()),
        };
    }
}

fn writes_spec(what: &ResourceRef) -> bool {
    matches!(what.subresource.as_str(), "" | "ephemeralcontainers" | "resize")
}

fn has_generation(resource: &Resource, object: &Value) -> bool {
    let without = ["nodes", "namespaces", "services", "persistentvolumes", "persistentvolumeclaims", "leases"];
    object["spec"].is_object() && !without.contains(&resource.plural.as_str())
}

fn names_version(change: &Value, how: PatchType) -> bool {
    how != PatchType::Json && change["metadata"]["resourceVersion"].is_string()
}

fn encode(object: &mut Value, revision: u64) -> Bytes {
    meta::metadata(object).insert("resourceVersion".into(), json!(revision.to_string()));
    object.to_string().into()
}
