//! `/etc/hosts` of a pod, in the words of the kubelet.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::Path;

use k8s_openapi::api::core::v1::HostAlias;

/// What the file says.
pub struct HostsFile<'a> {
    /// The pod uses the node's network and with it the node's file.
    pub host_network: bool,
    /// Addresses of the pod.
    pub ips: &'a [String],
    /// Its hostname.
    pub hostname: &'a str,
    /// Its domain.
    pub domain: Option<&'a str>,
    /// `spec.hostAliases`.
    pub aliases: &'a [HostAlias],
}

impl HostsFile<'_> {
    /// Writes it where the container's mount will look, readable for everybody.
    ///
    /// # Errors
    /// The file could not be written.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        let node_file =
            if self.host_network { fs::read_to_string("/etc/hosts").unwrap_or_default() } else { String::new() };
        // Written in place: running containers have this very file mounted.
        fs::write(path, self.text(&node_file))
    }

    fn text(&self, node_file: &str) -> String {
        let mut out = String::new();
        if self.host_network {
            out.push_str("# Kubernetes-managed hosts file (host network).\n");
            out.push_str(node_file);
        } else {
            out.push_str(
                "# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n\
                 fe00::0\tip6-localnet\nfe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n",
            );
            let host = self.hostname;
            for ip in self.ips {
                // Writing to a String cannot fail.
                let _ = match self.domain {
                    Some(domain) => writeln!(out, "{ip}\t{host}.{domain}\t{host}"),
                    None => writeln!(out, "{ip}\t{host}"),
                };
            }
        }
        if !self.aliases.is_empty() {
            out.push_str("\n# Entries added by HostAliases.\n");
            for alias in self.aliases {
                let _ = writeln!(out, "{}\t{}", alias.ip, alias.hostnames.as_deref().unwrap_or_default().join("\t"));
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_network_and_host_network() {
        let aliases: Vec<HostAlias> =
            serde_json::from_value(serde_json::json!([{"ip": "1.2.3.4", "hostnames": ["a.example", "b"]}])).unwrap();
        let ips = ["10.88.0.7".to_owned()];
        let mut file = HostsFile { host_network: false, ips: &ips, hostname: "web", domain: None, aliases: &aliases };
        let text = file.text("");
        assert!(text.starts_with("# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n"));
        assert!(text.ends_with("10.88.0.7\tweb\n\n# Entries added by HostAliases.\n1.2.3.4\ta.example\tb\n"));
        file.domain = Some("sub.shop.svc.cluster.local");
        assert!(file.text("").contains("10.88.0.7\tweb.sub.shop.svc.cluster.local\tweb\n"));
        file.host_network = true;
        assert!(
            file.text("127.0.0.1 me\n").starts_with("# Kubernetes-managed hosts file (host network).\n127.0.0.1 me\n")
        );
    }
}
