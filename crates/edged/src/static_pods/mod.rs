//! Static pods: the manifests in a folder of this node run without any cloud, and have mirrors in the API when there is one.
//!
//! `StaticPods` reads the folder whenever it changes, with a look every 20 s as a net, and hands the whole set to the desk.
//! `mirrors` keeps the API's copies in step. The decisions are those of [`podlife::static_pod`].

mod folder;
mod mirrors;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use podlife::spec;
use podlife::static_pod::{self, Origin};
use tokio_util::sync::CancellationToken;

use crate::pods::{Desk, News, PodVersion};
use crate::settings::Settings;
use folder::FolderWatch;
pub(crate) use mirrors::{MirrorNews, Mirrors, MirrorsTask, mirrors};

/// Between looks when nothing is told (`fileCheckFrequency`).
const PERIOD: Duration = Duration::from_secs(20);
/// After a change: who writes a file writes more than once.
const SETTLE: Duration = Duration::from_millis(100);

/// Reads manifests.
pub struct StaticPods {
    settings: Arc<Settings>,
    desk: Desk,
    /// Pods by file; one that has not changed keeps the time when it was first seen.
    known: BTreeMap<PathBuf, Arc<Pod>>,
    /// What was wrong with files, told once.
    wrong: BTreeMap<PathBuf, String>,
}

impl StaticPods {
    /// Static pods of the folder in the settings.
    pub fn new(settings: Arc<Settings>, desk: Desk) -> Self {
        Self { settings, desk, known: BTreeMap::new(), wrong: BTreeMap::new() }
    }

    /// Works until cancelled. The desk gets a set in any case: it waits for it before it ends what nobody wants.
    pub async fn run(mut self, stop: CancellationToken) {
        let folder = self.settings.static_pod_path.clone();
        if folder.as_os_str().is_empty() {
            self.desk.tell(News::Static(Vec::new())).await;
            return stop.cancelled().await;
        }
        let work = async {
            let mut watch = FolderWatch::new();
            let mut told: Option<Vec<String>> = None;
            loop {
                // Watched before it is read: no change falls between.
                watch.renew(&folder);
                if let Some(versions) = self.read(&folder) {
                    let uids: Vec<String> = versions.iter().map(describe).collect();
                    if told.as_ref() != Some(&uids) {
                        self.desk.tell(News::Static(versions)).await;
                        told = Some(uids);
                    }
                }
                tokio::select! {
                    () = tokio::time::sleep(PERIOD) => {}
                    () = watch.changed() => tokio::time::sleep(SETTLE).await,
                }
            }
        };
        tokio::select! {
            () = work => {}
            () = stop.cancelled() => {}
        }
    }

    /// All pods of the folder; `None` when it cannot be read: then what runs goes on.
    fn read(&mut self, folder: &std::path::Path) -> Option<Vec<PodVersion>> {
        let files = match folder::files(folder) {
            Ok(files) => files,
            Err(error) => {
                self.complain(folder.to_owned(), format!("the folder cannot be read: {error}"));
                return None;
            }
        };
        self.known.retain(|path, _| files.contains(path));
        self.wrong.retain(|path, _| files.contains(path));
        let mut versions: Vec<PodVersion> = Vec::new();
        for path in files {
            let pod = match folder::document(&path).and_then(|document| {
                let shown = path.display().to_string();
                let origin = Origin { node: &self.settings.node_name, path: &shown };
                static_pod::read(document, origin, Timestamp::now()).map_err(|error| error.to_string())
            }) {
                Ok(pod) => pod,
                Err(problem) => {
                    self.known.remove(&path);
                    self.complain(path, problem);
                    continue;
                }
            };
            let pod = match self.known.get(&path) {
                Some(before) if same(before, &pod) => Arc::clone(before),
                _ => Arc::new(pod),
            };
            let Some(identity) = spec::identity(&pod) else { continue };
            if versions.iter().any(|v| v.identity.name == identity.name && v.identity.namespace == identity.namespace) {
                self.complain(path, format!("another file has a pod {}/{} already", identity.namespace, identity.name));
                continue;
            }
            self.wrong.remove(&path);
            self.known.insert(path, Arc::clone(&pod));
            versions.push(PodVersion { identity, pod, api: PodStatus::default(), refusal: None });
        }
        Some(versions)
    }

    fn complain(&mut self, path: PathBuf, problem: String) {
        if self.wrong.get(&path) != Some(&problem) {
            tracing::error!(file = %path.display(), problem, "static pod left out");
            self.wrong.insert(path, problem);
        }
    }
}

/// What tells whether a set has changed: pods with a UID of their own change under it.
fn describe(version: &PodVersion) -> String {
    let seen = version.pod.metadata.annotations.as_ref().and_then(|all| all.get(static_pod::SEEN));
    format!("{} {}", version.identity.uid, seen.map_or("", String::as_str))
}

/// The same but for when they were seen.
fn same(before: &Pod, now: &Pod) -> bool {
    let bare = |pod: &Pod| {
        let mut pod = pod.clone();
        pod.metadata.annotations.get_or_insert_default().remove(static_pod::SEEN);
        pod
    };
    bare(before) == bare(now)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_folder_is_read_file_by_file() {
        let directory = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(directory.path().join(name), text).unwrap();
        let pod = |name: &str, image: &str| {
            format!(
                "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec: {{containers: [{{name: c, image: {image}}}]}}\n"
            )
        };
        write("b.yaml", &pod("web", "a:1"));
        write(
            "a.json",
            r#"{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "db"}, "spec": {"containers": [{"name": "c", "image": "b:1"}]}}"#,
        );
        write("c.yaml", &pod("web", "other:1"));
        write("d.yaml", "kind: [");
        write(".hidden.yaml", &pod("hidden", "a:1"));
        std::fs::create_dir(directory.path().join("folder")).unwrap();
        let mut settings = Settings::new("n1");
        settings.static_pod_path = directory.path().to_owned();
        let mut source = StaticPods::new(Arc::new(settings), Desk::unheard());
        let names =
            |versions: &[PodVersion]| -> Vec<String> { versions.iter().map(|v| v.identity.name.clone()).collect() };
        let first = source.read(directory.path()).unwrap();
        assert_eq!(names(&first), ["db-n1", "web-n1"]);
        assert_eq!(source.wrong.len(), 2, "{:?}", source.wrong);
        let again = source.read(directory.path()).unwrap();
        assert_eq!(describe(&first[1]), describe(&again[1]), "not seen anew");
        write("b.yaml", &pod("web", "a:2"));
        std::fs::remove_file(directory.path().join("a.json")).unwrap();
        std::fs::remove_file(directory.path().join("c.yaml")).unwrap();
        let edited = source.read(directory.path()).unwrap();
        assert_eq!(names(&edited), ["web-n1"]);
        assert_ne!(edited[0].identity.uid, first[1].identity.uid);
        assert!(source.read(std::path::Path::new("/no/such/folder")).unwrap().is_empty(), "no folder, no pods");
        assert!(source.read(std::path::Path::new("/proc/version")).is_none(), "what cannot be read changes nothing");
    }
}
