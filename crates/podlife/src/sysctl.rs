//! Which kernel parameters a pod may set: those that cannot leave its namespaces, and those that the node's administrator allows.

use k8s_openapi::api::core::v1::Pod;

/// Parameters that harm nobody else (kubelet 1.32). The kernel may be too old for the last seven; the runtime then refuses.
const SAFE: [&str; 12] = [
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.ping_group_range",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_wmem",
];

/// A namespace of Linux that has parameters of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Namespace {
    Ipc,
    Net,
}

/// A name with dots between its parts; with `/` as first separator, dots and slashes have changed places.
pub fn normalize(name: &str) -> String {
    match name.find(['.', '/']) {
        Some(at) if name[at..].starts_with('/') => name
            .chars()
            .map(|c| match c {
                '/' => '.',
                '.' => '/',
                other => other,
            })
            .collect(),
        _ => name.to_owned(),
    }
}

fn namespace(name: &str) -> Option<Namespace> {
    if name.starts_with("net.") {
        Some(Namespace::Net)
    } else if name == "kernel.sem" || ["kernel.shm", "kernel.msg", "fs.mqueue."].iter().any(|p| name.starts_with(p)) {
        Some(Namespace::Ipc)
    } else {
        None
    }
}

/// Why a pod may not have its sysctls: the message of a rejection for `SysctlForbidden`. `allowed_unsafe` are names or
/// prefixes that end with `*`; what is in no namespace cannot be allowed.
pub fn forbidden(pod: &Pod, allowed_unsafe: &[String]) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    let (host_net, host_ipc) = (spec.host_network.unwrap_or(false), spec.host_ipc.unwrap_or(false));
    let wanted = spec.security_context.as_ref()?.sysctls.as_deref()?;
    wanted.iter().find_map(|sysctl| {
        let name = normalize(&sysctl.name);
        let allowed = SAFE.contains(&name.as_str()) || allowed_unsafe.iter().any(|pattern| matches(pattern, &name));
        let problem = match namespace(&name).filter(|_| allowed) {
            None => "not allowlisted",
            Some(Namespace::Ipc) if host_ipc => "not allowed with host IPC enabled",
            Some(Namespace::Net) if host_net => "not allowed with host Net enabled",
            Some(_) => return None,
        };
        Some(format!("forbidden sysctl: {name:?} {problem}"))
    })
}

fn matches(pattern: &str, name: &str) -> bool {
    let pattern = normalize(pattern);
    match pattern.strip_suffix('*') {
        Some(prefix) => name.starts_with(prefix),
        None => pattern == name,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn check(name: &str, host: &str, allowed: &[&str]) -> Option<String> {
        let mut spec = json!({"containers": [], "securityContext": {"sysctls": [{"name": name, "value": "1"}]}});
        spec[host] = json!(true);
        let pod: Pod = serde_json::from_value(json!({"spec": spec})).unwrap();
        forbidden(&pod, &allowed.iter().map(|&s| s.to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn safe_allowed_and_forbidden_ones() {
        for (name, host, allowed, problem) in [
            ("net.ipv4.tcp_syncookies", "hostPID", &[][..], None),
            ("net/ipv4/tcp_syncookies", "hostPID", &[], None),
            ("kernel.msgmax", "hostPID", &[], Some(r#"forbidden sysctl: "kernel.msgmax" not allowlisted"#)),
            ("kernel.msgmax", "hostPID", &["kernel.msg*"], None),
            ("kernel/msgmax", "hostPID", &["kernel/msgmax"], None),
            ("vm.swappiness", "hostPID", &["vm.*"], Some(r#"forbidden sysctl: "vm.swappiness" not allowlisted"#)),
            (
                "net.ipv4.tcp_rmem",
                "hostNetwork",
                &[],
                Some(r#"forbidden sysctl: "net.ipv4.tcp_rmem" not allowed with host Net enabled"#),
            ),
            (
                "kernel.shm_rmid_forced",
                "hostIPC",
                &[],
                Some(r#"forbidden sysctl: "kernel.shm_rmid_forced" not allowed with host IPC enabled"#),
            ),
            ("kernel.shm_rmid_forced", "hostNetwork", &[], None),
        ] {
            assert_eq!(check(name, host, allowed).as_deref(), problem, "{name} {host}");
        }
    }

    #[test]
    fn slashes_and_dots() {
        for (name, normal) in [
            ("net.ipv4.conf.all", "net.ipv4.conf.all"),
            ("net/ipv4/conf/eth0.100/x", "net.ipv4.conf.eth0/100.x"),
            ("net.ipv4.conf.eth0/100.x", "net.ipv4.conf.eth0/100.x"),
        ] {
            assert_eq!(normalize(name), normal);
        }
    }
}
