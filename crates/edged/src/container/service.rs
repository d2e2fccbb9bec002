//! Variables that tell a container where a Service is, as the kubelet names them.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Endpoints, Service};

/// Where a Service is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceAddress {
    name: String,
    ip: String,
    /// Name (may be empty), protocol, number.
    ports: Vec<(String, String, i32)>,
}

impl ServiceAddress {
    /// The virtual address of a Service; `None` for a headless one.
    pub fn of_service(service: &Service) -> Option<Self> {
        let spec = service.spec.as_ref()?;
        let ip = spec.cluster_ip.clone().filter(|ip| ip.parse::<IpAddr>().is_ok())?;
        let text = |text: &Option<String>, other: &str| text.clone().unwrap_or_else(|| other.to_owned());
        let ports = spec.ports.iter().flatten();
        let ports: Vec<_> = ports.map(|port| (text(&port.name, ""), text(&port.protocol, "TCP"), port.port)).collect();
        Self::new(service.metadata.name.as_deref()?, ip, ports)
    }

    /// The first address behind a headless Service.
    pub fn of_endpoints(endpoints: &Endpoints) -> Option<Self> {
        let subset =
            endpoints.subsets.as_ref()?.iter().find(|s| s.addresses.as_ref().is_some_and(|a| !a.is_empty()))?;
        let ip = subset.addresses.as_ref()?.first()?.ip.clone();
        let text = |text: &Option<String>, other: &str| text.clone().unwrap_or_else(|| other.to_owned());
        let ports = subset.ports.iter().flatten();
        let ports: Vec<_> = ports.map(|port| (text(&port.name, ""), text(&port.protocol, "TCP"), port.port)).collect();
        Self::new(endpoints.metadata.name.as_deref()?, ip, ports)
    }

    fn new(name: &str, ip: String, ports: Vec<(String, String, i32)>) -> Option<Self> {
        (!ports.is_empty()).then(|| Self { name: variable(name), ip, ports })
    }

    /// All variables.
    pub fn variables(&self) -> Vec<(String, String)> {
        let Self { name, ip, ports } = self;
        let mut made = vec![(format!("{name}_SERVICE_HOST"), ip.clone())];
        made.extend(ports.first().map(|(_, _, port)| (format!("{name}_SERVICE_PORT"), port.to_string())));
        for (port_name, _, port) in ports.iter().filter(|(name, _, _)| !name.is_empty()) {
            made.push((format!("{name}_SERVICE_PORT_{}", variable(port_name)), port.to_string()));
        }
        let host = if ip.contains(':') { format!("[{ip}]") } else { ip.clone() };
        for (index, (_, protocol, port)) in ports.iter().enumerate() {
            let url = format!("{}://{host}:{port}", protocol.to_lowercase());
            if index == 0 {
                made.push((format!("{name}_PORT"), url.clone()));
            }
            let prefix = format!("{name}_PORT_{port}_{}", protocol.to_uppercase());
            made.push((prefix.clone(), url));
            made.push((format!("{prefix}_PROTO"), protocol.to_lowercase()));
            made.push((format!("{prefix}_PORT"), port.to_string()));
            made.push((format!("{prefix}_ADDR"), ip.clone()));
        }
        made
    }
}

fn variable(name: &str) -> String {
    name.replace('-', "_").to_uppercase()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn as_the_kubelet_names_them() {
        let service = json!({"metadata": {"name": "kubernetes"}, "spec": {"clusterIP": "10.96.0.1",
            "ports": [{"name": "https", "port": 443, "protocol": "TCP"}]}});
        let service = serde_json::from_value(service).unwrap();
        let made = ServiceAddress::of_service(&service).unwrap().variables();
        let lines: Vec<String> = made.iter().map(|(name, value)| format!("{name}={value}")).collect();
        assert_eq!(
            lines,
            [
                "KUBERNETES_SERVICE_HOST=10.96.0.1",
                "KUBERNETES_SERVICE_PORT=443",
                "KUBERNETES_SERVICE_PORT_HTTPS=443",
                "KUBERNETES_PORT=tcp://10.96.0.1:443",
                "KUBERNETES_PORT_443_TCP=tcp://10.96.0.1:443",
                "KUBERNETES_PORT_443_TCP_PROTO=tcp",
                "KUBERNETES_PORT_443_TCP_PORT=443",
                "KUBERNETES_PORT_443_TCP_ADDR=10.96.0.1",
            ]
        );
    }

    #[test]
    fn a_headless_service_is_where_its_endpoints_are() {
        let service =
            json!({"metadata": {"name": "kubernetes"}, "spec": {"clusterIP": "None", "ports": [{"port": 443}]}});
        assert_eq!(ServiceAddress::of_service(&serde_json::from_value(service).unwrap()), None);
        let endpoints = json!({"metadata": {"name": "kubernetes"}, "subsets": [{"ports": [{"port": 1}]},
            {"addresses": [{"ip": "fd00::1"}], "ports": [{"name": "https", "port": 6443, "protocol": "TCP"}]}]});
        let found = ServiceAddress::of_endpoints(&serde_json::from_value(endpoints).unwrap()).unwrap();
        let variables = found.variables();
        assert_eq!(variables[0].1, "fd00::1");
        assert!(variables.contains(&("KUBERNETES_PORT".into(), "tcp://[fd00::1]:6443".into())));
        assert_eq!(ServiceAddress::of_endpoints(&Endpoints::default()), None);
    }
}
