//! The cells of the other built-in kinds.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::age;

pub(super) fn cell(plural: &str, column: &str, object: &Value, now: Timestamp) -> Value {
    let (spec, status) = (&object["spec"], &object["status"]);
    let number = |value: &Value| json!(value.as_i64().unwrap_or_default());
    match (plural, column) {
        ("nodes", _) => node(column, object),
        ("events", _) => event(column, object, now),
        ("services", _) => service(column, spec),
        ("deployments", "Ready") => {
            json!(format!("{}/{}", number(&status["readyReplicas"]), number(&spec["replicas"])))
        }
        ("deployments", "Up-to-date") => json!(number(&status["updatedReplicas"]).to_string()),
        ("deployments", "Available") => json!(number(&status["availableReplicas"]).to_string()),
        ("replicasets", "Desired") => number(&spec["replicas"]),
        ("replicasets", "Current") => number(&status["replicas"]),
        ("replicasets", "Ready") => number(&status["readyReplicas"]),
        ("daemonsets", "Desired") => number(&status["desiredNumberScheduled"]),
        ("daemonsets", "Current") => number(&status["currentNumberScheduled"]),
        ("daemonsets", "Ready") => number(&status["numberReady"]),
        ("daemonsets", "Up-to-date") => number(&status["updatedNumberScheduled"]),
        ("daemonsets", "Available") => number(&status["numberAvailable"]),
        ("statefulsets", "Ready") => {
            json!(format!("{}/{}", number(&status["readyReplicas"]), number(&spec["replicas"])))
        }
        ("jobs", _) if !matches!(column, "Containers" | "Images") => job(column, object, now),
        ("daemonsets", "Node Selector") => pairs(&spec["template"]["spec"]["nodeSelector"]),
        (_, "Containers") => each(&spec["template"]["spec"]["containers"], "name"),
        (_, "Images") => each(&spec["template"]["spec"]["containers"], "image"),
        ("deployments" | "replicasets" | "daemonsets", "Selector") => pairs(&spec["selector"]["matchLabels"]),
        ("namespaces", "Status") => status["phase"].clone(),
        ("configmaps", "Data") => json!(count(&object["data"]) + count(&object["binaryData"])),
        ("secrets", "Data") => json!(count(&object["data"])),
        ("secrets", "Type") => object["type"].clone(),
        ("endpoints", "Endpoints") => endpoints(object),
        ("leases", "Holder") => text(&spec["holderIdentity"]),
        ("certificatesigningrequests", _) => request(column, object),
        ("rolebindings" | "clusterrolebindings", _) => binding(column, object),
        ("priorityclasses", "Value") => number(&object["value"]),
        ("priorityclasses", "Global-Default") => json!(object["globalDefault"] == true),
        ("priorityclasses", "PreemptionPolicy") => text(&object["preemptionPolicy"]),
        ("runtimeclasses", "Handler") => text(&object["handler"]),
        ("csinodes", "Drivers") => json!(spec["drivers"].as_array().map_or(0, Vec::len)),
        ("volumeattachments", "Attacher") => text(&spec["attacher"]),
        ("volumeattachments", "PV") => text(&spec["source"]["persistentVolumeName"]),
        ("volumeattachments", "Node") => text(&spec["nodeName"]),
        ("volumeattachments", "Attached") => json!(status["attached"] == true),
        ("controllerrevisions", "Revision") => json!(number(&object["revision"]).to_string()),
        ("controllerrevisions", "Controller") => {
            let owner = &object["metadata"]["ownerReferences"][0];
            json!(format!("{}/{}", plain(&owner["kind"]).to_lowercase(), plain(&owner["name"])))
        }
        ("endpointslices", "AddressType") => object["addressType"].clone(),
        _ => json!("<unset>"),
    }
}

fn node(column: &str, node: &Value) -> Value {
    let info = &node["status"]["nodeInfo"];
    let address = |kind: &str| {
        let addresses = node["status"]["addresses"].as_array().into_iter().flatten();
        let found = addresses.filter(|a| a["type"] == kind).find_map(|a| a["address"].as_str());
        json!(found.unwrap_or("<none>"))
    };
    match column {
        "Status" => {
            let conditions = node["status"]["conditions"].as_array().into_iter().flatten();
            let ready = conditions.filter(|c| c["type"] == "Ready").find_map(|c| c["status"].as_str());
            let word = match ready {
                Some("True") => "Ready",
                Some(_) => "NotReady",
                None => "Unknown",
            };
            let cordoned = if node["spec"]["unschedulable"] == true { ",SchedulingDisabled" } else { "" };
            json!(format!("{word}{cordoned}"))
        }
        "Roles" => {
            let labels = node["metadata"]["labels"].as_object().into_iter().flatten();
            let mut roles: Vec<&str> =
                labels.filter_map(|(key, _)| key.strip_prefix("node-role.kubernetes.io/")).collect();
            roles.sort_unstable();
            json!(if roles.is_empty() { "<none>".to_owned() } else { roles.join(",") })
        }
        "Version" => text(&info["kubeletVersion"]),
        "Internal-IP" => address("InternalIP"),
        "External-IP" => address("ExternalIP"),
        "OS-Image" => text(&info["osImage"]),
        "Kernel-Version" => text(&info["kernelVersion"]),
        "Container-Runtime" => text(&info["containerRuntimeVersion"]),
        _ => Value::Null,
    }
}

fn job(column: &str, job: &Value, now: Timestamp) -> Value {
    let (spec, status) = (&job["spec"], &job["status"]);
    let count = |value: &Value| value.as_i64().unwrap_or_default();
    match column {
        "Status" => {
            let holds = |kind: &str| {
                let conditions = status["conditions"].as_array();
                conditions.into_iter().flatten().any(|c| c["type"] == kind && c["status"] == "True")
            };
            let ended = ["Complete", "Failed"].into_iter().find(|kind| holds(kind));
            let deleted = crate::meta::is_terminating(job).then_some("Terminating");
            let others = ["Suspended", "FailureTarget", "SuccessCriteriaMet"].into_iter().find(|kind| holds(kind));
            json!(ended.or(deleted).or(others).unwrap_or("Running"))
        }
        "Completions" => json!(match (spec["completions"].as_i64(), count(&spec["parallelism"])) {
            (Some(wanted), _) => format!("{}/{wanted}", count(&status["succeeded"])),
            (None, parallel) if parallel > 1 => format!("{}/1 of {parallel}", count(&status["succeeded"])),
            (None, _) => format!("{}/1", count(&status["succeeded"])),
        }),
        "Duration" => match status["startTime"].as_str() {
            None => json!(""),
            Some(start) => {
                let end = status["completionTime"].as_str().and_then(|time| time.parse().ok()).unwrap_or(now);
                json!(age(Some(start), end))
            }
        },
        "Selector" => pairs(&spec["selector"]["matchLabels"]),
        _ => json!("<unset>"),
    }
}

fn event(column: &str, event: &Value, now: Timestamp) -> Value {
    let first = event["firstTimestamp"].as_str().or(event["eventTime"].as_str());
    let last = event["series"]["lastObservedTime"].as_str().or(event["lastTimestamp"].as_str()).or(first);
    let object = &event["involvedObject"];
    match column {
        "Last Seen" => json!(age(last, now)),
        "First Seen" => json!(age(first, now)),
        "Type" => event["type"].clone(),
        "Reason" => event["reason"].clone(),
        "Object" => json!(format!("{}/{}", plain(&object["kind"]).to_lowercase(), plain(&object["name"]))),
        "Subobject" => json!(plain(&object["fieldPath"])),
        "Source" => {
            let source = [plain(&event["source"]["component"]), plain(&event["source"]["host"])];
            let source: Vec<String> = source.into_iter().filter(|text| !text.is_empty()).collect();
            json!(source.join(", "))
        }
        "Message" => json!(plain(&event["message"]).trim()),
        "Count" => json!(event["series"]["count"].as_i64().or(event["count"].as_i64()).unwrap_or(1).to_string()),
        _ => Value::Null,
    }
}

fn service(column: &str, spec: &Value) -> Value {
    match column {
        "Type" => spec["type"].clone(),
        "Cluster-IP" => text(&spec["clusterIP"]),
        "External-IP" => match spec["type"].as_str() {
            Some("ExternalName") => text(&spec["externalName"]),
            _ => list(&spec["externalIPs"]),
        },
        "Port(s)" => {
            let ports = spec["ports"].as_array().into_iter().flatten().map(|port| {
                let node = port["nodePort"].as_i64().map(|port| format!(":{port}")).unwrap_or_default();
                format!("{}{node}/{}", port["port"], plain(&port["protocol"]))
            });
            let ports: Vec<String> = ports.collect();
            json!(if ports.is_empty() { "<none>".to_owned() } else { ports.join(",") })
        }
        "Selector" => pairs(&spec["selector"]),
        _ => Value::Null,
    }
}

fn request(column: &str, request: &Value) -> Value {
    let spec = &request["spec"];
    match column {
        "SignerName" => text(&spec["signerName"]),
        "Requestor" => text(&spec["username"]),
        "RequestedDuration" => match spec["expirationSeconds"].as_i64() {
            Some(seconds) => json!(super::human_duration(seconds)),
            None => json!("<none>"),
        },
        "Condition" => {
            let conditions = request["status"]["conditions"].as_array().into_iter().flatten();
            let mut words: Vec<String> = conditions.map(|c| plain(&c["type"])).collect();
            if words.is_empty() {
                words.push("Pending".to_owned());
            }
            if request["status"]["certificate"].is_string() {
                words.push("Issued".to_owned());
            }
            json!(words.join(","))
        }
        _ => Value::Null,
    }
}

fn binding(column: &str, binding: &Value) -> Value {
    let of_kind = |kind: &str| {
        let subjects = binding["subjects"].as_array().into_iter().flatten().filter(|s| s["kind"] == kind);
        let names: Vec<String> = subjects
            .map(|s| match s["namespace"].as_str() {
                Some(namespace) => format!("{namespace}/{}", plain(&s["name"])),
                None => plain(&s["name"]),
            })
            .collect();
        json!(names.join(", "))
    };
    match column {
        "Role" => json!(format!("{}/{}", plain(&binding["roleRef"]["kind"]), plain(&binding["roleRef"]["name"]))),
        "Users" => of_kind("User"),
        "Groups" => of_kind("Group"),
        "ServiceAccounts" => of_kind("ServiceAccount"),
        _ => Value::Null,
    }
}

fn endpoints(object: &Value) -> Value {
    let mut found = Vec::new();
    for subset in object["subsets"].as_array().into_iter().flatten() {
        for address in subset["addresses"].as_array().into_iter().flatten() {
            for port in subset["ports"].as_array().into_iter().flatten() {
                found.push(format!("{}:{}", plain(&address["ip"]), port["port"]));
            }
        }
    }
    match found.len() {
        0 => json!("<none>"),
        1..=3 => json!(found.join(",")),
        more => json!(format!("{} + {} more...", found[..3].join(","), more - 3)),
    }
}

fn text(value: &Value) -> Value {
    json!(value.as_str().filter(|text| !text.is_empty()).unwrap_or("<none>"))
}

fn plain(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn count(map: &Value) -> usize {
    map.as_object().map_or(0, serde_json::Map::len)
}

fn list(values: &Value) -> Value {
    let texts: Vec<&str> = values.as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    json!(if texts.is_empty() { "<none>".to_owned() } else { texts.join(",") })
}

fn each(list: &Value, field: &str) -> Value {
    let texts: Vec<&str> = list.as_array().into_iter().flatten().filter_map(|item| item[field].as_str()).collect();
    json!(texts.join(","))
}

fn pairs(map: &Value) -> Value {
    let pairs: Vec<String> =
        map.as_object().into_iter().flatten().map(|(key, value)| format!("{key}={}", plain(value))).collect();
    json!(if pairs.is_empty() { "<none>".to_owned() } else { pairs.join(",") })
}
