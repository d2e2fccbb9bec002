//! What a request's path and query mean.

use percent_encoding::percent_decode_str;

use crate::ApiError;
use crate::api::{Api, ListOptions, ResourceRef};

/// A longer query is refused.
const MAX_QUERY: usize = 16 << 10;

/// What a path asks for.
#[derive(Debug)]
pub(super) enum Target {
    /// `/api`.
    CoreVersions,
    /// `/apis`.
    Groups,
    /// `/apis/GROUP`.
    Group(String),
    /// `/api/v1`, `/apis/GROUP/VERSION`.
    Resources(String, String),
    /// `/openapi/v2`.
    OpenApiV2,
    /// `/openapi/v3`.
    OpenApi,
    /// `/openapi/v3/…`.
    OpenApiGroup(String),
    /// `/version`.
    Version,
    /// `/healthz`, `/livez`, `/readyz`.
    Health,
    /// Objects.
    Objects(ResourceRef),
}

/// The parameters of a query in their order; where one value is asked for, the last of several counts.
#[derive(Debug, Default)]
pub(crate) struct Query(Vec<(String, String)>);

impl Target {
    pub(super) fn parse(api: &Api, path: &str) -> Result<Self, ApiError> {
        let parts: Vec<String> = path
            .trim_matches('/')
            .split('/')
            .map(|part| percent_decode_str(part).decode_utf8().map(|text| text.into_owned()))
            .collect::<Result<_, _>>()
            .map_err(|_| ApiError::bad_request("the path is not UTF-8"))?;
        let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
        Ok(match parts.as_slice() {
            ["api"] => Self::CoreVersions,
            ["apis"] => Self::Groups,
            ["apis", group] => Self::Group((*group).to_owned()),
            ["api", version] => Self::Resources(String::new(), (*version).to_owned()),
            ["apis", group, version] => Self::Resources((*group).to_owned(), (*version).to_owned()),
            ["openapi", "v2"] => Self::OpenApiV2,
            ["openapi", "v3"] => Self::OpenApi,
            ["openapi", "v3", rest @ ..] => Self::OpenApiGroup(rest.join("/")),
            ["version"] => Self::Version,
            ["healthz" | "livez" | "readyz", ..] => Self::Health,
            ["api", version, rest @ ..] => Self::Objects(objects(api, "", version, rest)?),
            ["apis", group, version, rest @ ..] => Self::Objects(objects(api, group, version, rest)?),
            _ => return Err(ApiError::no_such_path()),
        })
    }
}

fn objects(api: &Api, group: &str, version: &str, parts: &[&str]) -> Result<ResourceRef, ApiError> {
    // `namespaces/NAME/status` is a subresource of a namespace, `namespaces/NAME/pods` are objects in it.
    let (namespace, rest) = match parts {
        ["namespaces", _name, "status" | "finalize"] => ("", parts),
        ["namespaces", name, rest @ ..] if !rest.is_empty() => (*name, rest),
        parts => ("", parts),
    };
    let (plural, name, subresource) = match rest {
        [plural] => (*plural, "", ""),
        [plural, name] => (*plural, *name, ""),
        [plural, name, subresource] => (*plural, *name, *subresource),
        // What follows is a path at the node.
        ["nodes", name, "proxy", ..] => ("nodes", *name, "proxy"),
        _ => return Err(ApiError::no_such_path()),
    };
    let resource = api.catalog().find(group, version, plural)?;
    if !resource.namespaced && !namespace.is_empty() {
        return Err(ApiError::no_such_path());
    }
    if resource.namespaced && namespace.is_empty() && !name.is_empty() {
        return Err(ApiError::no_such_path());
    }
    if !subresource.is_empty() && !resource.has(subresource) {
        return Err(match subresource {
            "log" | "exec" | "attach" | "portforward" | "proxy" => {
                ApiError::not_implemented(&format!("{plural}/{subresource}"))
            }
            _ => ApiError::no_such_path(),
        });
    }
    Ok(ResourceRef {
        resource,
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        subresource: subresource.to_owned(),
    })
}

impl Query {
    /// Reads a query; empty pairs (`?&a=b`) are skipped.
    pub(crate) fn parse(text: &str) -> Result<Self, ApiError> {
        if text.len() > MAX_QUERY {
            return Err(ApiError::too_large(MAX_QUERY));
        }
        let decode = |text: &str| {
            let spaced = text.replace('+', " ");
            let decoded = percent_decode_str(&spaced).decode_utf8().map(|text| text.into_owned());
            decoded.map_err(|_| ApiError::bad_request("the query is not UTF-8"))
        };
        let mut parameters = Vec::new();
        for pair in text.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            parameters.push((decode(key)?, decode(value)?));
        }
        Ok(Self(parameters))
    }

    pub(crate) fn get(&self, name: &str) -> &str {
        self.0.iter().rev().find(|(key, _)| key == name).map(|(_, value)| value.as_str()).unwrap_or_default()
    }

    /// Every value of a parameter.
    pub(crate) fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// A flag as Kubernetes reads those of options: there, and neither `false` nor `0`.
    pub(crate) fn says(&self, name: &str) -> bool {
        self.all(name).next().is_some_and(|value| value != "0" && !value.eq_ignore_ascii_case("false"))
    }

    /// A whole number.
    pub(crate) fn whole(&self, name: &str) -> Result<Option<i64>, ApiError> {
        match self.get(name) {
            "" => Ok(None),
            text => text.parse().map(Some).map_err(|_| ApiError::bad_request(format!("invalid {name}: {text:?}"))),
        }
    }

    pub(super) fn flag(&self, name: &str) -> bool {
        matches!(self.get(name), "true" | "1")
    }

    pub(super) fn number(&self, name: &str) -> Result<Option<u64>, ApiError> {
        match self.get(name) {
            "" => Ok(None),
            text => text.parse().map(Some).map_err(|_| ApiError::bad_request(format!("invalid {name}: {text:?}"))),
        }
    }

    pub(super) fn list_options(&self) -> Result<ListOptions, ApiError> {
        Ok(ListOptions {
            label_selector: self.get("labelSelector").to_owned(),
            field_selector: self.get("fieldSelector").to_owned(),
            limit: usize::try_from(self.number("limit")?.unwrap_or_default()).unwrap_or_default(),
            continue_token: self.get("continue").to_owned(),
        })
    }
}
