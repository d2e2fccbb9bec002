//! Which request of the kubelet's API a subresource of a pod becomes.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;

use super::log;
use crate::ApiError;
use crate::http::target::Query;

/// What stands in a query as it is.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// The parameters of a request to a kubelet.
#[derive(Debug, Default)]
pub(super) struct Parameters(String);

impl Parameters {
    pub(super) fn add(&mut self, name: &str, value: &str) {
        if !self.0.is_empty() {
            self.0.push('&');
        }
        self.0.push_str(name);
        self.0.push('=');
        self.0.extend(utf8_percent_encode(value, ENCODED));
    }

    pub(super) fn text(self) -> String {
        self.0
    }
}

/// Path and query at the kubelet of the pod's node for `log`, `exec`, `attach` or `portforward`.
///
/// # Errors
/// 400 when the container is not said or not there, or an option cannot be read; 422 for options of a log that are wrong.
pub(super) fn of_pod(subresource: &str, pod: &Value, query: &Query) -> Result<String, ApiError> {
    let name = pod["metadata"]["name"].as_str().unwrap_or_default();
    let place = format!("{}/{name}", pod["metadata"]["namespace"].as_str().unwrap_or_default());
    let (path, parameters) = match subresource {
        "log" => {
            let parameters = log::parameters(name, query)?;
            (format!("containerLogs/{place}/{}", container(pod, query.get("container"))?), parameters)
        }
        "portforward" => (format!("portForward/{place}"), ports(query)?),
        "exec" => (format!("exec/{place}/{}", container(pod, query.get("container"))?), streams(query, true)),
        "attach" => (format!("attach/{place}/{}", container(pod, query.get("container"))?), streams(query, false)),
        other => return Err(ApiError::not_implemented(&format!("pods/{other}"))),
    };
    let parameters = parameters.text();
    Ok(if parameters.is_empty() { format!("/{path}") } else { format!("/{path}?{parameters}") })
}

/// The node that the pod is on.
///
/// # Errors
/// 400 when it is on none yet.
pub(super) fn node_of(pod: &Value) -> Result<&str, ApiError> {
    pod["spec"]["nodeName"].as_str().filter(|node| !node.is_empty()).ok_or_else(|| {
        let name = pod["metadata"]["name"].as_str().unwrap_or_default();
        ApiError::bad_request(format!("pod {name} does not have a host assigned"))
    })
}

/// The container that is meant: the one that is said, or the only one.
fn container(pod: &Value, said: &str) -> Result<String, ApiError> {
    let names = |list: &str| -> Vec<&str> {
        pod["spec"][list].as_array().into_iter().flatten().filter_map(|container| container["name"].as_str()).collect()
    };
    let pod_name = pod["metadata"]["name"].as_str().unwrap_or_default();
    let (main, init) = (names("containers"), names("initContainers"));
    if !said.is_empty() {
        let is_there = main.iter().chain(&init).chain(&names("ephemeralContainers")).any(|name| *name == said);
        let unknown = || ApiError::bad_request(format!("container {said} is not valid for pod {pod_name}"));
        return is_there.then(|| said.to_owned()).ok_or_else(unknown);
    }
    match main.as_slice() {
        [only] => Ok((*only).to_owned()),
        all => {
            let mut why = format!("a container name must be specified for pod {pod_name}");
            if !all.is_empty() {
                why += &format!(", choose one of: [{}]", all.join(" "));
            }
            if !init.is_empty() {
                why += &format!(" or one of the init containers: [{}]", init.join(" "));
            }
            Err(ApiError::bad_request(why))
        }
    }
}

/// `PodExecOptions` and `PodAttachOptions`, by the kubelet's names.
fn streams(query: &Query, with_command: bool) -> Parameters {
    let mut parameters = Parameters::default();
    for (ours, theirs) in [("stdin", "input"), ("stdout", "output"), ("stderr", "error"), ("tty", "tty")] {
        if query.says(ours) {
            parameters.add(theirs, "1");
        }
    }
    if with_command {
        query.all("command").for_each(|word| parameters.add("command", word));
    }
    parameters
}

/// `PodPortForwardOptions`.
fn ports(query: &Query) -> Result<Parameters, ApiError> {
    let mut parameters = Parameters::default();
    for port in query.all("ports").flat_map(|ports| ports.split(',')) {
        let number = port.parse::<u16>().ok().filter(|port| *port > 0);
        let number = number.ok_or_else(|| ApiError::bad_request(format!("ports: {port:?} is no port")))?;
        parameters.add("port", &number.to_string());
    }
    Ok(parameters)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn target(subresource: &str, query: &str) -> Result<String, String> {
        let pod = json!({"metadata": {"namespace": "ns", "name": "p"}, "spec": {
            "containers": [{"name": "a"}, {"name": "b"}], "initContainers": [{"name": "i"}], "ephemeralContainers": [{"name": "e"}]}});
        of_pod(subresource, &pod, &Query::parse(query).expect("a query")).map_err(|error| error.message)
    }

    #[test]
    fn what_a_kubelet_is_asked() {
        for (subresource, query, asked) in [
            ("log", "container=b&follow=true", "/containerLogs/ns/p/b?follow=true"),
            ("log", "container=i", "/containerLogs/ns/p/i"),
            (
                "exec",
                "command=sh&command=-c&command=echo+%26+%C3%A4&container=a&stdin=true&stdout=true&stderr=false&tty=true",
                "/exec/ns/p/a?input=1&output=1&tty=1&command=sh&command=-c&command=echo%20%26%20%C3%A4",
            ),
            ("attach", "container=e&stdout=1&command=x", "/attach/ns/p/e?output=1"),
            ("portforward", "", "/portForward/ns/p"),
            ("portforward", "&ports=80&ports=81,443", "/portForward/ns/p?port=80&port=81&port=443"),
        ] {
            assert_eq!(target(subresource, query).as_deref(), Ok(asked));
        }
        let choose =
            "a container name must be specified for pod p, choose one of: [a b] or one of the init containers: [i]";
        assert_eq!(target("exec", "").expect_err("unsaid"), choose);
        assert_eq!(target("log", "container=x%2Fy").expect_err("wrong"), "container x/y is not valid for pod p");
        assert_eq!(target("portforward", "ports=0").expect_err("wrong"), "ports: \"0\" is no port");
    }

    #[test]
    fn the_only_container_need_not_be_said() {
        let pod = json!({"metadata": {"namespace": "ns", "name": "p"}, "spec": {"containers": [{"name": "a"}], "initContainers": [{"name": "i"}]}});
        assert_eq!(of_pod("log", &pod, &Query::default()).expect("fine"), "/containerLogs/ns/p/a");
        assert_eq!(node_of(&pod).expect_err("none").message, "pod p does not have a host assigned");
    }
}
