//! The resolver configuration of a pod (`dnsPolicy`, `dnsConfig`), by the rules of the kubelet.

use std::path::Path;

use k8s_openapi::api::core::v1::Pod;

use crate::cri::proto::DnsConfig;
use crate::settings::Settings;

/// Limits of what a resolver understands (Kubernetes).
const MAX_SERVERS: usize = 3;
const MAX_SEARCHES: usize = 32;
const MAX_SEARCH_BYTES: usize = 2048;

/// A configuration, and what was left out of it for being too much.
#[derive(Debug, Default, PartialEq)]
pub struct PodDns {
    /// For the runtime.
    pub config: DnsConfig,
    /// Text of the event `DNSConfigForming`.
    pub cut: Option<String>,
    /// The pod wants cluster DNS and the node has none (event `MissingClusterDNS`).
    pub missing_cluster_dns: bool,
}

/// Servers, searches and options of a resolv.conf.
pub fn parse_resolv_conf(text: &str) -> DnsConfig {
    let mut config = DnsConfig::default();
    for line in text.lines() {
        let line = line.split(['#', ';']).next().unwrap_or_default();
        let mut words = line.split_whitespace().map(str::to_owned);
        match words.next().as_deref() {
            Some("nameserver") => config.servers.extend(words.next()),
            // The last line of these wins, as in the C library.
            Some("search") => config.searches = words.map(|domain| trim_dot(&domain)).collect(),
            Some("options") => config.options = words.collect(),
            _ => {}
        }
    }
    config
}

fn trim_dot(domain: &str) -> String {
    domain.strip_suffix('.').filter(|rest| !rest.is_empty()).unwrap_or(domain).to_owned()
}

/// The node's own configuration; empty when it has none. Without a path (`resolvConf: ""`) nothing is resolved.
pub fn host(path: &Path) -> DnsConfig {
    if path.as_os_str().is_empty() {
        return DnsConfig { servers: vec!["127.0.0.1".into()], searches: vec![".".into()], options: Vec::new() };
    }
    std::fs::read_to_string(path).map(|text| parse_resolv_conf(&text)).unwrap_or_default()
}

/// The configuration of a pod on a node with this one.
pub fn pod(settings: &Settings, pod: &Pod, host: DnsConfig) -> PodDns {
    let spec = pod.spec.clone().unwrap_or_default();
    let host_network = spec.host_network.unwrap_or(false);
    let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
    let policy = spec.dns_policy.as_deref().unwrap_or("ClusterFirst");
    let wants_cluster = policy == "ClusterFirstWithHostNet" || (policy == "ClusterFirst" && !host_network);
    let mut dns = PodDns::default();
    dns.config = match policy {
        "None" => DnsConfig::default(),
        _ if wants_cluster && !settings.cluster_dns.is_empty() => cluster(settings, namespace, host),
        _ => {
            dns.missing_cluster_dns = wants_cluster;
            host
        }
    };
    if let Some(more) = spec.dns_config {
        append(&mut dns.config.servers, more.nameservers.unwrap_or_default());
        append(&mut dns.config.searches, more.searches.unwrap_or_default());
        for option in more.options.unwrap_or_default() {
            let name = option.name.unwrap_or_default();
            dns.config.options.retain(|old| old.split(':').next() != Some(&name));
            dns.config.options.push(option.value.map_or(name.clone(), |value| format!("{name}:{value}")));
        }
    }
    dns.cut = cut(&mut dns.config);
    dns
}

fn cluster(settings: &Settings, namespace: &str, host: DnsConfig) -> DnsConfig {
    let domain = &settings.cluster_domain;
    let mut searches = Vec::new();
    if !domain.is_empty() {
        searches = vec![format!("{namespace}.svc.{domain}"), format!("svc.{domain}"), domain.clone()];
    }
    append(&mut searches, host.searches);
    DnsConfig { servers: settings.cluster_dns.clone(), searches, options: vec!["ndots:5".into()] }
}

fn append(list: &mut Vec<String>, more: Vec<String>) {
    for item in more {
        if !list.contains(&item) {
            list.push(item);
        }
    }
}

fn cut(config: &mut DnsConfig) -> Option<String> {
    let mut text = None;
    if config.servers.len() > MAX_SERVERS {
        config.servers.truncate(MAX_SERVERS);
        text = Some(format!(
            "Nameserver limits were exceeded, some nameservers have been omitted, the applied nameserver line is: {}",
            config.servers.join(" ")
        ));
    }
    let before = config.searches.len();
    config.searches.truncate(MAX_SEARCHES);
    while config.searches.join(" ").len() > MAX_SEARCH_BYTES {
        config.searches.pop();
    }
    if config.searches.len() < before {
        text = Some(format!(
            "Search Line limits were exceeded, some search paths have been omitted, the applied search line is: {}",
            config.searches.join(" ")
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn settings(dns: &[&str]) -> Settings {
        let mut settings = Settings::new("n1");
        settings.cluster_dns = dns.iter().map(|&s| s.to_owned()).collect();
        settings
    }

    fn pod_with(spec: serde_json::Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "a", "namespace": "shop"}, "spec": spec})).unwrap()
    }

    fn of(spec: serde_json::Value, servers: &[&str]) -> PodDns {
        let host = parse_resolv_conf("# x\nnameserver 9.9.9.9\nsearch lan. home\noptions rotate\n");
        pod(&settings(servers), &pod_with(spec), host)
    }

    #[test]
    fn policies() {
        let dns = of(json!({"containers": []}), &["10.0.0.10"]);
        assert_eq!(dns.config.servers, ["10.0.0.10"]);
        assert_eq!(
            dns.config.searches,
            ["shop.svc.cluster.local", "svc.cluster.local", "cluster.local", "lan", "home"]
        );
        assert_eq!(dns.config.options, ["ndots:5"]);
        for spec in [json!({"containers": [], "hostNetwork": true}), json!({"containers": [], "dnsPolicy": "Default"})]
        {
            let dns = of(spec, &["10.0.0.10"]);
            assert_eq!((&*dns.config.servers, dns.missing_cluster_dns), (&["9.9.9.9".to_owned()][..], false));
            assert_eq!(dns.config.options, ["rotate"]);
        }
        let dns =
            of(json!({"containers": [], "hostNetwork": true, "dnsPolicy": "ClusterFirstWithHostNet"}), &["10.0.0.10"]);
        assert_eq!(dns.config.servers, ["10.0.0.10"]);
        let dns = of(json!({"containers": []}), &[]);
        assert!(dns.missing_cluster_dns && dns.config.servers == ["9.9.9.9"]);
    }

    #[test]
    fn additions_and_limits() {
        let dns = of(
            json!({"containers": [], "dnsPolicy": "None", "dnsConfig": {
                "nameservers": ["1.1.1.1", "1.1.1.2", "1.1.1.3", "1.1.1.4"], "searches": ["a", "a"],
                "options": [{"name": "ndots", "value": "2"}, {"name": "edns0"}]}}),
            &["10.0.0.10"],
        );
        assert_eq!(dns.config.servers.len(), 3);
        assert_eq!(dns.config.searches, ["a"]);
        assert_eq!(dns.config.options, ["ndots:2", "edns0"]);
        assert!(dns.cut.unwrap().contains("1.1.1.1 1.1.1.2 1.1.1.3"));
    }
}
