//! One request: who asks, may he, what does he want.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use link::http_server::{Body, Peer};
use serde_json::{Value, json};
use tracing::debug;

use super::answer::{self, Form};
use super::stream;
use super::target::{Query, Target};
use crate::api::{Action, Api, DeleteOptions, ResourceRef, User, WriteOptions};
use crate::node::metrics;
use crate::node::pass::{self, Call};
use crate::{ApiError, PatchType, discovery, openapi, protobuf};

/// The longest request body, as upstream has it.
pub(crate) const MAX_BODY: usize = 3 << 20;
/// The version that is announced; clients compare it with their own.
const VERSION: &str = "v1.32.0";

/// Finds out who asks: by certificate or token.
pub trait Identity: Clone + Send + Sync + 'static {
    /// The user.
    ///
    /// # Errors
    /// 401 when he cannot be believed, 403 when he may not act as the one he wishes to be.
    fn identify(&self, api: &Api, peer: &Peer, headers: &HeaderMap) -> Result<User, ApiError>;
}

/// Answers requests to an API.
#[derive(Clone)]
pub struct Server<I> {
    /// The API.
    pub api: Api,
    /// Who finds out who asks.
    pub identity: I,
    /// `host:port` that discovery names.
    pub address: String,
}

struct Asked {
    user: User,
    method: Method,
    headers: HeaderMap,
    query: Query,
    gzip: bool,
}

impl<I: Identity> Server<I> {
    /// Answers one request.
    pub async fn handle(self, request: Request<Incoming>, peer: Peer) -> Response<Body> {
        match self.try_handle(request, &peer).await {
            Ok(answer) => answer,
            Err(error) => {
                debug!(code = error.code, reason = error.reason, "a request was refused");
                answer::error(&error)
            }
        }
    }

    async fn try_handle(&self, mut request: Request<Incoming>, peer: &Peer) -> Result<Response<Body>, ApiError> {
        let upgrade = hyper::upgrade::on(&mut request);
        let (head, body) = request.into_parts();
        let path = head.uri.path().to_owned();
        let query_text = head.uri.query().unwrap_or_default().to_owned();
        let query = Query::parse(&query_text)?;
        if matches!(path.as_str(), "/healthz" | "/livez" | "/readyz") {
            return Ok(answer::text(StatusCode::OK, "text/plain; charset=utf-8", Bytes::from_static(b"ok"), false));
        }
        let user = self.identity.identify(&self.api, peer, &head.headers)?;
        let gzip = answer::wants_gzip(&head.headers);
        let asked = Asked { user, method: head.method, headers: head.headers, query, gzip };
        let target = Target::parse(&self.api, &path)?;
        self.authorize(&asked, &target, &path)?;
        if let Target::Objects(what) = target {
            if let Some(nodes) = self.api.nodes().filter(|_| pass::is_handed_on(&what)) {
                let Asked { method, headers, query, .. } = asked;
                let call = Call { method, version: head.version, headers, path, query_text, query, body, upgrade };
                return pass::hand_on(&self.api, nodes, &what, call).await;
            }
            return self.objects(asked, what, body).await;
        }
        if asked.method != Method::GET {
            return Err(ApiError::method_not_allowed());
        }
        self.about(&asked, target)
    }

    fn authorize(&self, asked: &Asked, target: &Target, path: &str) -> Result<(), ApiError> {
        let user = &asked.user.name;
        let may = |action: &Action<'_>| self.api.authority().authorize(&self.api, &asked.user, action);
        let Target::Objects(what) = target else {
            if may(&Action { verb: "get", path, ..Action::default() }) {
                return Ok(());
            }
            return Err(ApiError::forbidden("", "", "", &format!("User \"{user}\" cannot get path \"{path}\"")));
        };
        let mut action = object_action(asked, what);
        if may(&action) {
            let is_plain = !pass::opens_streams(what) || !pass::wants_upgrade(&asked.headers);
            if is_plain || action.verb == "create" {
                return Ok(());
            }
            // A WebSocket begins with GET, whatever is done with it.
            action.verb = "create";
            if may(&action) {
                return Ok(());
            }
        }
        let resource = if what.subresource.is_empty() {
            what.resource.plural.clone()
        } else {
            format!("{}/{}", what.resource.plural, what.subresource)
        };
        let scope = if what.namespace.is_empty() {
            "at the cluster scope".to_owned()
        } else {
            format!("in the namespace \"{}\"", what.namespace)
        };
        let why = format!(
            "User \"{user}\" cannot {} resource \"{resource}\" in API group \"{}\" {scope}",
            action.verb, what.resource.group
        );
        Err(ApiError::forbidden(&what.resource.plural, &what.resource.group, &what.name, &why))
    }

    /// Discovery, OpenAPI, version.
    fn about(&self, asked: &Asked, target: Target) -> Result<Response<Body>, ApiError> {
        let json = |value: &Value| Ok(answer::json(StatusCode::OK, value, asked.gzip));
        let aggregated = answer::wants_aggregated(&asked.headers);
        match target {
            Target::CoreVersions | Target::Groups if aggregated => {
                let document = discovery::aggregated(&self.api, matches!(target, Target::CoreVersions));
                let kind = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
                let mut answer = answer::text(StatusCode::OK, kind, document.to_string().into(), asked.gzip);
                answer.headers_mut().append(header::VARY, HeaderValue::from_static("Accept"));
                Ok(answer)
            }
            Target::CoreVersions => json(&discovery::api_versions(&self.address)),
            Target::Groups => json(&discovery::api_groups(&self.api)),
            Target::Group(name) => json(&discovery::api_group(&self.api, &name).ok_or_else(ApiError::no_such_path)?),
            Target::Resources(group, version) => {
                json(&discovery::resources(&self.api, &group, &version).ok_or_else(ApiError::no_such_path)?)
            }
            Target::OpenApiV2 if answer::wants_openapi_v2(&asked.headers) => {
                Ok(answer::text(StatusCode::OK, openapi::V2_TYPE, Bytes::from_static(openapi::V2), asked.gzip))
            }
            Target::OpenApi => Ok(cached(asked, &openapi::index(&self.api), false)),
            Target::OpenApiGroup(path) => {
                let document = openapi::document(&self.api, &path);
                let is_served = document["paths"].as_object().is_some_and(|paths| !paths.is_empty());
                if is_served { Ok(cached(asked, &document, true)) } else { Err(ApiError::no_such_path()) }
            }
            Target::Version => json(&json!({
                "major": "1", "minor": "32", "gitVersion": format!("{VERSION}+ferroedge"), "gitCommit": "", "gitTreeState": "clean",
                "buildDate": "", "goVersion": "", "compiler": "rustc", "platform": "linux/amd64",
            })),
            Target::OpenApiV2 | Target::Health | Target::Objects(_) => Err(ApiError::no_such_path()),
        }
    }

    async fn objects(&self, asked: Asked, what: ResourceRef, body: Incoming) -> Result<Response<Body>, ApiError> {
        let form = Form::of(&asked.headers, asked.query.get("includeObject"));
        let many = what.name.is_empty();
        let verb = object_action(&asked, &what).verb;
        let served = what.resource.verbs.iter().any(|served| served == verb);
        if what.subresource.is_empty() && !served {
            return Err(ApiError::method_not_allowed());
        }
        if let Some(nodes) = self.api.nodes().filter(|_| what.resource.group == metrics::GROUP) {
            if many {
                let list = metrics::list(&self.api, nodes, &what, &asked.query.list_options()?).await?;
                return Ok(answer::json(StatusCode::OK, &answer::list(&what, &list, form), asked.gzip));
            }
            let object = metrics::get(&self.api, nodes, &what).await?;
            return Ok(answer::json(StatusCode::OK, &answer::object(&what, object, form), asked.gzip));
        }
        match (&asked.method, many) {
            (&Method::GET, true) => self.list_or_watch(&asked, what, form).await,
            (&Method::GET, false)
                if form == Form::Plain && what.subresource.is_empty() && what.resource.custom.is_none() =>
            {
                let stored = self.api.get_raw(&what)?;
                Ok(answer::text(StatusCode::OK, "application/json", stored.json, asked.gzip))
            }
            (&Method::GET, false) => {
                let object = self.api.read(&what).await?;
                Ok(answer::json(StatusCode::OK, &answer::object(&what, object, form), asked.gzip))
            }
            (&Method::DELETE, _) => self.delete(&asked, &what, body).await,
            (&Method::POST, _) | (&Method::PUT, false) | (&Method::PATCH, false) => {
                let options = write_options(&asked.query);
                let (status, object) = self.write(&asked, &what, body, &options).await?;
                Ok(answer::json(status, &answer::object(&what, object, plain_unless_table(form, &what)), asked.gzip))
            }
            _ => Err(ApiError::method_not_allowed()),
        }
    }

    async fn list_or_watch(&self, asked: &Asked, what: ResourceRef, form: Form) -> Result<Response<Body>, ApiError> {
        let options = asked.query.list_options()?;
        if asked.query.flag("watch") {
            if asked.query.flag("sendInitialEvents") {
                return Err(ApiError::invalid(
                    "ListOptions",
                    "meta.k8s.io",
                    "",
                    &[crate::error::Cause::forbidden(
                        "sendInitialEvents",
                        "sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled",
                    )],
                ));
            }
            let since = stream::since(asked.query.get("resourceVersion"))?;
            let limit = asked.query.number("timeoutSeconds")?;
            let watch = self.api.watch(&what, &options, since)?;
            let bookmarks = asked.query.flag("allowWatchBookmarks");
            return Ok(stream::watch(&self.api, what, watch, form, bookmarks, limit));
        }
        if form == Form::Plain && what.resource.custom.is_none() {
            let body = answer::raw_list(&what, &self.api.list_raw(&what, &options)?);
            return Ok(answer::text(StatusCode::OK, "application/json", body, asked.gzip));
        }
        let mut list = self.api.list(&what, &options)?;
        list.items = self.api.convert(&what, list.items).await?;
        Ok(answer::json(StatusCode::OK, &answer::list(&what, &list, form), asked.gzip))
    }

    async fn write(
        &self,
        asked: &Asked,
        what: &ResourceRef,
        body: Incoming,
        options: &WriteOptions,
    ) -> Result<(StatusCode, Value), ApiError> {
        let content_type = content_type(&asked.headers);
        let bytes = collect(body).await?;
        if asked.method == Method::PATCH {
            let how = PatchType::of_content_type(&content_type)?;
            let patch: Value = serde_json::from_slice(&bytes)
                .map_err(|error| ApiError::bad_request(format!("error decoding patch: {error}")))?;
            return Ok((StatusCode::OK, self.api.patch(what, &patch, how, options).await?));
        }
        let object = decode(&content_type, &bytes)?;
        if asked.method == Method::PUT {
            return Ok((StatusCode::OK, self.api.update(what, object, options).await?));
        }
        Ok((StatusCode::CREATED, self.api.create(&asked.user, what, object, options).await?))
    }

    async fn delete(&self, asked: &Asked, what: &ResourceRef, body: Incoming) -> Result<Response<Body>, ApiError> {
        let bytes = collect(body).await?;
        let content_type = content_type(&asked.headers);
        let body = if bytes.is_empty() { json!({}) } else { decode(&content_type, &bytes)? };
        let mut options = DeleteOptions::parse(&body)?;
        if let Some(seconds) = asked.query.number("gracePeriodSeconds")? {
            options.grace_period_seconds = i64::try_from(seconds).ok();
        }
        if !asked.query.get("propagationPolicy").is_empty() {
            options.propagation_policy = asked.query.get("propagationPolicy").to_owned();
        }
        options.dry_run |= !asked.query.get("dryRun").is_empty();
        if what.name.is_empty() {
            self.api.delete_collection(what, &asked.query.list_options()?, &options).await?;
            let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"});
            return Ok(answer::json(StatusCode::OK, &status, false));
        }
        let (object, gone) = self.api.delete(what, &options).await?;
        if !gone || what.resource.plural == "pods" {
            return Ok(answer::json(StatusCode::OK, &object, asked.gzip));
        }
        let details = json!({"name": what.name, "group": what.resource.group, "kind": what.resource.plural, "uid": object["metadata"]["uid"]});
        let status =
            json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details});
        Ok(answer::json(StatusCode::OK, &status, false))
    }
}

/// Tables are for reading; kubectl asks for them in writes too and reads objects all the same.
fn plain_unless_table(form: Form, _what: &ResourceRef) -> Form {
    if matches!(form, Form::Partial) { form } else { Form::Plain }
}

fn object_action<'a>(asked: &Asked, what: &'a ResourceRef) -> Action<'a> {
    let many = what.name.is_empty();
    let verb = match asked.method {
        Method::GET if many && asked.query.flag("watch") => "watch",
        Method::GET if many => "list",
        Method::GET | Method::HEAD => "get",
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE if many => "deletecollection",
        Method::DELETE => "delete",
        _ => "",
    };
    Action {
        verb,
        group: &what.resource.group,
        resource: &what.resource.plural,
        subresource: &what.subresource,
        namespace: &what.namespace,
        name: &what.name,
        path: "",
    }
}

fn write_options(query: &Query) -> WriteOptions {
    WriteOptions { dry_run: !query.get("dryRun").is_empty(), strict: query.get("fieldValidation") == "Strict" }
}

fn content_type(headers: &HeaderMap) -> String {
    headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned()
}

fn decode(content_type: &str, bytes: &[u8]) -> Result<Value, ApiError> {
    match content_type.split(';').next().unwrap_or_default().trim() {
        "application/vnd.kubernetes.protobuf" => protobuf::decode(bytes),
        "" | "application/json" => serde_json::from_slice(bytes)
            .map_err(|error| ApiError::bad_request(format!("the body of the request is no JSON: {error}"))),
        other => Err(ApiError::unsupported_media_type(format!(
            "the body of the request was in an unknown format - accepted media types include: application/json, application/vnd.kubernetes.protobuf; got {other:?}"
        ))),
    }
}

async fn collect(body: Incoming) -> Result<Bytes, ApiError> {
    match Limited::new(body, MAX_BODY).collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) if error.is::<http_body_util::LengthLimitError>() => Err(ApiError::too_large(MAX_BODY)),
        Err(_) => Err(ApiError::bad_request("the body of the request broke off")),
    }
}

/// An OpenAPI document with what clients need to keep it.
fn cached(asked: &Asked, document: &Value, forever: bool) -> Response<Body> {
    let tag = format!("\"{}\"", openapi::hash(document));
    let known = asked.headers.get(header::IF_NONE_MATCH).and_then(|value| value.to_str().ok()) == Some(tag.as_str());
    let mut answer = if known {
        answer::text(StatusCode::NOT_MODIFIED, "application/json", Bytes::new(), false)
    } else {
        answer::json(StatusCode::OK, document, asked.gzip)
    };
    if let Ok(tag) = HeaderValue::from_str(&tag) {
        answer.headers_mut().insert(header::ETAG, tag);
    }
    if forever && !asked.query.get("hash").is_empty() {
        answer.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("public, immutable"));
        answer.headers_mut().insert(header::EXPIRES, HeaderValue::from_static("Fri, 31 Dec 2100 00:00:00 GMT"));
    }
    answer
}
