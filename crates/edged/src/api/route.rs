//! Paths and methods.

use http::Method;

use super::devices::{DeviceName, DevicePath};
use crate::access::ContainerName;

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    /// `/healthz` and its single checks.
    Health(Check),
    /// `/pods`.
    Pods,
    /// `/runningpods/`.
    RunningPods,
    /// `/containerLogs/{namespace}/{pod}/{container}`.
    Logs(ContainerName),
    /// `/exec/…`.
    Exec(ContainerName),
    /// `/attach/…`.
    Attach(ContainerName),
    /// `/run/…`.
    Run(ContainerName),
    /// `/portForward/{namespace}/{pod}[/{uid}]`.
    PortForward {
        /// Namespace of the pod.
        namespace: String,
        /// The pod.
        pod: String,
        /// Its UID, when that very one is meant.
        uid: Option<String>,
    },
    /// `/devices` and what is below.
    Devices(DevicePath),
    /// `/configz`.
    Configz,
    /// `/stats/summary`.
    Summary,
    /// `/metrics` and the pages below.
    Metrics(Metrics),
}

/// A page of metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Metrics {
    /// The agent itself.
    Agent,
    /// Usage by cgroup.
    Cadvisor,
    /// Usage as `kubectl top` needs it.
    Resource,
    /// Ends of probes.
    Probes,
    /// Health as a metric.
    Slis,
}

/// A health check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Check {
    /// All of them.
    All,
    /// The server answers.
    Ping,
    /// Logs can be written.
    Log,
    /// The main loop comes round.
    SyncLoop,
}

/// Nothing is served there.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RouteError {
    /// No such path.
    #[error("404 page not found: the node's API has no such path")]
    NotFound,
    /// Not with this method.
    #[error("method not allowed: use {0}")]
    Method(&'static str),
}

/// Reads method and path.
pub fn route(method: &Method, path: &str) -> Result<Route, RouteError> {
    let path = path.strip_prefix('/').ok_or(RouteError::NotFound)?;
    let path = path.strip_suffix('/').unwrap_or(path);
    let parts: Vec<&str> = path.split('/').collect();
    if parts.len() > 1 && parts.contains(&"") {
        return Err(RouteError::NotFound);
    }
    let (route, methods) = match parts.as_slice() {
        ["healthz"] => (Route::Health(Check::All), "GET"),
        ["healthz", "ping"] => (Route::Health(Check::Ping), "GET"),
        ["healthz", "log"] => (Route::Health(Check::Log), "GET"),
        ["healthz", "syncloop"] => (Route::Health(Check::SyncLoop), "GET"),
        ["pods"] => (Route::Pods, "GET"),
        ["runningpods"] => (Route::RunningPods, "GET"),
        ["devices"] => (Route::Devices(DevicePath::List), "GET"),
        ["devices", namespace, name, "twin"] => (Route::Devices(DevicePath::Twin(device(namespace, name))), "GET"),
        ["devices", namespace, name, "history"] => {
            (Route::Devices(DevicePath::History(device(namespace, name))), "GET")
        }
        ["configz"] => (Route::Configz, "GET"),
        ["stats", "summary"] => (Route::Summary, "GET"),
        ["metrics"] => (Route::Metrics(Metrics::Agent), "GET"),
        ["metrics", "cadvisor"] => (Route::Metrics(Metrics::Cadvisor), "GET"),
        ["metrics", "resource"] => (Route::Metrics(Metrics::Resource), "GET"),
        ["metrics", "probes"] => (Route::Metrics(Metrics::Probes), "GET"),
        ["metrics", "slis"] => (Route::Metrics(Metrics::Slis), "GET"),
        ["containerLogs", namespace, pod, container] => (Route::Logs(name(namespace, pod, None, container)), "GET"),
        ["portForward", namespace, pod, uid @ ..] if uid.len() < 2 => {
            let uid = uid.first().map(|uid| (*uid).to_owned());
            (Route::PortForward { namespace: (*namespace).to_owned(), pod: (*pod).to_owned(), uid }, "GET or POST")
        }
        [verb @ ("exec" | "attach" | "run"), namespace, pod, rest @ .., container] if rest.len() < 2 => {
            let name = name(namespace, pod, rest.first(), container);
            match *verb {
                "exec" => (Route::Exec(name), "GET or POST"),
                "attach" => (Route::Attach(name), "GET or POST"),
                _ => (Route::Run(name), "POST"),
            }
        }
        _ => return Err(RouteError::NotFound),
    };
    if methods.split(" or ").any(|allowed| allowed == method.as_str()) {
        Ok(route)
    } else {
        Err(RouteError::Method(methods))
    }
}

fn device(namespace: &str, name: &str) -> DeviceName {
    DeviceName { namespace: namespace.to_owned(), name: name.to_owned() }
}

fn name(namespace: &str, pod: &str, uid: Option<&&str>, container: &str) -> ContainerName {
    ContainerName {
        namespace: namespace.to_owned(),
        pod: pod.to_owned(),
        uid: uid.map(|uid| (*uid).to_owned()),
        container: container.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_and_methods() {
        let get = |path: &str| route(&Method::GET, path);
        assert_eq!(get("/healthz"), Ok(Route::Health(Check::All)));
        assert_eq!(get("/healthz/syncloop"), Ok(Route::Health(Check::SyncLoop)));
        assert_eq!(get("/runningpods/"), get("/runningpods"));
        assert_eq!(get("/metrics/resource"), Ok(Route::Metrics(Metrics::Resource)));
        assert_eq!(get("/containerLogs/ns/p/c"), Ok(Route::Logs(name("ns", "p", None, "c"))));
        assert_eq!(get("/exec/ns/p/c"), Ok(Route::Exec(name("ns", "p", None, "c"))));
        assert_eq!(get("/exec/ns/p/u/c"), Ok(Route::Exec(name("ns", "p", Some(&"u"), "c"))));
        assert_eq!(route(&Method::POST, "/run/ns/p/c"), Ok(Route::Run(name("ns", "p", None, "c"))));
        assert_eq!(get("/devices/"), Ok(Route::Devices(DevicePath::List)));
        assert_eq!(get("/devices/ns/d/twin"), Ok(Route::Devices(DevicePath::Twin(device("ns", "d")))));
        assert_eq!(get("/devices/ns/d/history"), Ok(Route::Devices(DevicePath::History(device("ns", "d")))));
        let forward = |uid: Option<&str>| Route::PortForward {
            namespace: "ns".into(),
            pod: "p".into(),
            uid: uid.map(str::to_owned),
        };
        assert_eq!(get("/portForward/ns/p"), Ok(forward(None)));
        assert_eq!(route(&Method::POST, "/portForward/ns/p/u"), Ok(forward(Some("u"))));
        for path in [
            "",
            "*",
            "/",
            "//",
            "/pods//",
            "/x",
            "/healthz/x",
            "/containerLogs/ns/p",
            "/containerLogs/ns//c",
            "/exec/ns/p",
            "/exec/ns/p/u/c/d",
            "/portForward/ns",
            "/portForward/ns/p/u/x",
            "/PODS",
            "/devices/ns/d",
            "/devices/ns/d/twin/x",
            "/../pods",
            "/logs/",
            "/debug/pprof",
        ] {
            assert_eq!(get(path), Err(RouteError::NotFound), "{path}");
        }
        for (method, path, allowed) in [
            (Method::GET, "/run/ns/p/c", "POST"),
            (Method::POST, "/pods", "GET"),
            (Method::DELETE, "/exec/ns/p/c", "GET or POST"),
            (Method::OPTIONS, "/healthz", "GET"),
        ] {
            assert_eq!(route(&method, path), Err(RouteError::Method(allowed)), "{path}");
        }
    }
}
