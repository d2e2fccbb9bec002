//! emptyDir volumes: on the pods' disk, in memory, or on huge pages.
//!
//! A marker file tells that a volume was made completely: what containers then do with its modes and owners is theirs.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use k8s_openapi::api::core::v1::{EmptyDirVolumeSource, Pod};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use podlife::spec;

use super::{VolumeError, fs_group, mount_table, tmpfs};
use crate::container::resources::pod_amounts;
use podlife::quantity;

const HUGE_PAGES: &str = "HugePages";

/// Makes a volume once, also after a crash in the middle or a restart of the machine.
pub(super) fn set_up(
    path: &Path,
    marker: &Path,
    source: &EmptyDirVolumeSource,
    pod: &Pod,
    allocatable_memory: i64,
) -> Result<(), VolumeError> {
    let medium = source.medium.as_deref().unwrap_or_default();
    let mounted = !medium.is_empty();
    if marker.is_file() && (!mounted || mount_table::is_mount_point(path).map_err(VolumeError::file(path))?) {
        return Ok(());
    }
    fs::create_dir_all(path).map_err(VolumeError::file(path))?;
    match medium {
        "" => {}
        "Memory" => {
            let size = memory_size(source, pod, allocatable_memory);
            let size = size.map(|size| format!("size={size}")).unwrap_or_default();
            tmpfs::mount_at(path, "tmpfs", &size)?;
        }
        medium => tmpfs::mount_at(path, "hugetlbfs", &format!("pagesize={}", page_size(medium, pod)?))?,
    }
    // Set explicitly: the process' umask has taken bits away.
    fs::set_permissions(path, fs::Permissions::from_mode(0o777)).map_err(VolumeError::file(path))?;
    if let Some(group) = fs_group::wanted(pod) {
        fs_group::apply(path, group, false).map_err(VolumeError::file(path))?;
    }
    if let Some(dir) = marker.parent() {
        fs::create_dir_all(dir).map_err(VolumeError::file(dir))?;
    }
    fs::write(marker, b"").map_err(VolumeError::file(marker))
}

/// The smallest of what pods may use at all, the volume's own limit, and the pod's limit if every container has one.
fn memory_size(source: &EmptyDirVolumeSource, pod: &Pod, allocatable: i64) -> Option<i64> {
    let own = source.size_limit.as_ref().and_then(quantity::value).unwrap_or_default();
    [own, pod_amounts(pod).memory_limit, allocatable].into_iter().filter(|size| *size > 0).min()
}

/// `HugePages-2Mi` names its size; `HugePages` means the only one that the pod's containers ask for.
fn page_size(medium: &str, pod: &Pod) -> Result<String, VolumeError> {
    let invalid = |why: &str| VolumeError::Invalid(format!("emptyDir medium {medium:?}: {why}"));
    let requested = |container: &k8s_openapi::api::core::v1::Container| -> Vec<String> {
        let resources = container.resources.clone().unwrap_or_default();
        let lists = [resources.requests, resources.limits];
        let all = lists.into_iter().flatten().flatten();
        all.filter_map(|(name, _)| name.strip_prefix("hugepages-").map(str::to_owned)).collect()
    };
    let mut sizes: Vec<String> =
        spec::containers(pod).iter().chain(spec::init_containers(pod)).flat_map(requested).collect();
    sizes.sort_unstable();
    sizes.dedup();
    let named =
        medium.strip_prefix(HUGE_PAGES).ok_or_else(|| invalid("use \"\", Memory, HugePages or HugePages-SIZE"))?;
    match named.strip_prefix('-') {
        Some(size) if quantity::value(&Quantity(size.to_owned())).is_none() => Err(invalid("the size is no quantity")),
        Some(size) if sizes.iter().any(|requested| requested == size) => Ok(size.to_owned()),
        Some(_) => Err(invalid("no container of the pod asks for huge pages of this size")),
        None if !named.is_empty() => Err(invalid("use \"\", Memory, HugePages or HugePages-SIZE")),
        None => match sizes.as_slice() {
            [size] => Ok(size.clone()),
            [] => Err(invalid("no container of the pod asks for huge pages")),
            _ => Err(invalid("the pod asks for huge pages of several sizes: name one, as in HugePages-2Mi")),
        },
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(containers: serde_json::Value) -> Pod {
        serde_json::from_value(json!({"spec": {"containers": containers}})).unwrap()
    }

    #[test]
    fn sizes_in_memory() {
        let source = |limit: Option<&str>| EmptyDirVolumeSource {
            medium: Some("Memory".into()),
            size_limit: limit.map(|limit| Quantity(limit.into())),
        };
        let limited = pod(json!([{"name": "a", "resources": {"limits": {"memory": "8Mi"}}}]));
        let open = pod(json!([{"name": "a", "resources": {"limits": {"memory": "8Mi"}}}, {"name": "b"}]));
        for (pod, limit, size) in [
            (&limited, None, 8),
            (&limited, Some("4Mi"), 4),
            (&limited, Some("16Mi"), 8),
            (&open, Some("16Mi"), 16),
            (&open, None, 64),
            (&open, Some("1Gi"), 64),
        ] {
            assert_eq!(memory_size(&source(limit), pod, 64 << 20), Some(size << 20), "{limit:?}");
        }
    }

    #[test]
    fn sizes_of_pages() {
        let two = json!({"limits": {"hugepages-2Mi": "4Mi"}});
        let one = pod(json!([{"name": "a", "resources": two}]));
        let both = pod(json!([{"name": "a", "resources": two},
            {"name": "b", "resources": {"requests": {"hugepages-1Gi": "1Gi"}}}]));
        for (medium, pod, size) in [
            ("HugePages", &one, Some("2Mi")),
            ("HugePages-2Mi", &one, Some("2Mi")),
            ("HugePages-1Gi", &one, None),
            ("HugePages", &both, None),
            ("HugePages-1Gi", &both, Some("1Gi")),
            ("HugePages-x", &both, None),
            ("Disk", &both, None),
        ] {
            assert_eq!(page_size(medium, pod).ok().as_deref(), size, "{medium}");
        }
    }
}
