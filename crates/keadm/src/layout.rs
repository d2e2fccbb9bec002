//! Where the files of an edge node are: upstream's absolute paths, or everything below one folder.

use std::path::{Path, PathBuf};

use serde_json::Value;

/// Upstream's folder of configuration and certificates.
const BASE: &str = "/etc/kubeedge";
/// Upstream's folders and where they are below a node's own folder.
const MOVED: [(&str, &str); 4] =
    [(BASE, ""), ("/var/lib/kubeedge", "data"), ("/var/lib/kubelet", "kubelet"), ("/var/log/pods", "log/pods")];

/// The places of one node. Its methods give paths as programs see them; [`Layout::on_disk`] says where they are now.
#[derive(Clone, Debug)]
pub struct Layout {
    own: Option<PathBuf>,
    root: Option<PathBuf>,
}

impl Layout {
    /// Upstream's places, or everything below `own` (`--config-dir`). `root` stands before every path (`--root-dir`).
    pub fn new(own: Option<&Path>, root: Option<&Path>) -> std::io::Result<Self> {
        Ok(Self { own: own.map(std::path::absolute).transpose()?, root: root.map(std::path::absolute).transpose()? })
    }

    /// Whether everything is below a folder of the node's own.
    pub fn is_private(&self) -> bool {
        self.own.is_some()
    }

    /// Whether the files are those of the running system: only then do its processes matter.
    pub fn is_this_machine(&self) -> bool {
        self.root.is_none()
    }

    /// The folder of configuration and certificates.
    pub fn base(&self) -> &Path {
        self.own.as_deref().unwrap_or(Path::new(BASE))
    }

    /// edgecore's configuration.
    pub fn config(&self) -> PathBuf {
        self.base().join("config/edgecore.yaml")
    }

    /// The join token on its way to edgecore, which removes it.
    pub fn bootstrap(&self) -> PathBuf {
        self.base().join("bootstrap-edgecore.conf")
    }

    /// What `join` made, for `reset`.
    pub fn receipt(&self) -> PathBuf {
        self.base().join("joined.json")
    }

    /// Where a path is on this machine.
    pub fn on_disk(&self, path: &Path) -> PathBuf {
        match &self.root {
            Some(root) => root.join(path.strip_prefix("/").unwrap_or(path)),
            None => path.to_path_buf(),
        }
    }

    /// Moves every default path of a document below the node's own folder, if it has one.
    pub fn relocate(&self, value: &mut Value) {
        let Some(own) = &self.own else { return };
        match value {
            Value::String(text) => {
                for (from, to) in MOVED {
                    let Some(rest) = text.strip_prefix(from).filter(|rest| rest.is_empty() || rest.starts_with('/'))
                    else {
                        continue;
                    };
                    *text = format!("{}{rest}", own.join(to).display().to_string().trim_end_matches('/'));
                    return;
                }
            }
            Value::Array(items) => items.iter_mut().for_each(|item| self.relocate(item)),
            Value::Object(map) => map.values_mut().for_each(|item| self.relocate(item)),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn upstreams_places_are_the_default() {
        let layout = Layout::new(None, Some(Path::new("/mnt"))).expect("layout");
        assert_eq!(layout.config(), Path::new("/etc/kubeedge/config/edgecore.yaml"));
        assert_eq!(layout.bootstrap(), Path::new(api::edgecore::BOOTSTRAP_PATH));
        assert_eq!(layout.on_disk(&layout.config()), Path::new("/mnt/etc/kubeedge/config/edgecore.yaml"));
        let mut value = json!("/etc/kubeedge/ca");
        layout.relocate(&mut value);
        assert_eq!(value, json!("/etc/kubeedge/ca"));
    }

    #[test]
    fn a_node_can_have_a_folder_of_its_own() {
        let layout = Layout::new(Some(Path::new("/srv/e1")), None).expect("layout");
        assert_eq!(layout.config(), Path::new("/srv/e1/config/edgecore.yaml"));
        let mut document = api::edgecore::Config::default_document().value;
        layout.relocate(&mut document);
        for (path, place) in [
            ("/database/dataSource", "/srv/e1/data/edgecore.db"),
            ("/modules/edged/rootDirectory", "/srv/e1/kubelet"),
            ("/modules/edged/tailoredKubeletConfig/podLogsDir", "/srv/e1/log/pods"),
            ("/modules/edgeHub/tlsCaFile", "/srv/e1/ca/rootCA.crt"),
            ("/modules/deviceTwin/dmiSockPath", "/srv/e1/"),
        ] {
            assert_eq!(document.pointer(path), Some(&json!(place)), "{path}");
        }
        let text = document.to_string();
        for shared in ["/etc/kubeedge", "/var/lib/kube", "/var/log"] {
            assert!(!text.contains(shared), "{shared} is still in use");
        }
    }
}
