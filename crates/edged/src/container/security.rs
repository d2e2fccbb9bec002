//! Security contexts of pods and containers as the runtime wants them; a container's fields override the pod's one by one.

use k8s_openapi::api::core::v1::{Container, Pod, PodSecurityContext, SELinuxOptions, SeccompProfile, SecurityContext};
use podlife::{apparmor, spec};

use crate::cri::proto::{self, NamespaceMode};

/// Paths that containers do not see (Kubernetes' default `procMount`).
const MASKED: [&str; 12] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];
/// Paths that containers cannot write.
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// The user of an image, as the runtime reports it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImageUser {
    /// Numeric user.
    pub uid: Option<i64>,
    /// User by name.
    pub username: String,
}

fn pod_context(pod: &Pod) -> PodSecurityContext {
    pod.spec.as_ref().and_then(|s| s.security_context.clone()).unwrap_or_default()
}

fn is_privileged(container: &Container) -> bool {
    container.security_context.as_ref().and_then(|context| context.privileged).unwrap_or(false)
}

/// Which namespaces a pod's containers share with the node or with each other.
pub fn namespaces(pod: &Pod) -> proto::NamespaceOption {
    let pod_spec = pod.spec.clone().unwrap_or_default();
    let node_or = |on_node: Option<bool>, other: NamespaceMode| {
        if on_node.unwrap_or(false) { NamespaceMode::Node } else { other }
    };
    let shared = pod_spec.share_process_namespace.unwrap_or(false);
    let pid = if shared { NamespaceMode::Pod } else { NamespaceMode::Container };
    proto::NamespaceOption {
        network: node_or(pod_spec.host_network, NamespaceMode::Pod) as i32,
        pid: node_or(pod_spec.host_pid, pid) as i32,
        ipc: node_or(pod_spec.host_ipc, NamespaceMode::Pod) as i32,
        target_id: String::new(),
    }
}

/// The sandbox's context. `volume_groups` are those that the pod's volumes ask for.
pub fn sandbox(pod: &Pod, volume_groups: &[i64]) -> proto::LinuxSandboxSecurityContext {
    let context = pod_context(pod);
    let all = spec::containers(pod).iter().chain(spec::init_containers(pod));
    let ephemeral = pod.spec.as_ref().and_then(|s| s.ephemeral_containers.as_deref()).unwrap_or_default();
    let mut ephemeral = ephemeral.iter().filter_map(|container| container.security_context.as_ref()?.privileged);
    proto::LinuxSandboxSecurityContext {
        namespace_options: Some(namespaces(pod)),
        selinux_options: context.se_linux_options.as_ref().map(selinux),
        run_as_user: context.run_as_user.map(int64),
        run_as_group: context.run_as_user.and(context.run_as_group).map(int64),
        readonly_rootfs: false,
        supplemental_groups: context
            .fs_group
            .into_iter()
            .chain(volume_groups.iter().copied())
            .chain(context.supplemental_groups.iter().flatten().copied())
            .collect(),
        privileged: all.into_iter().any(is_privileged) || ephemeral.any(|privileged| privileged),
        seccomp: Some(profile(proto::security_profile::ProfileType::RuntimeDefault, String::new())),
        apparmor: None,
    }
}

/// What a container's context depends on besides the pod.
pub struct SecurityInput<'a> {
    /// User of the image.
    pub image: &'a ImageUser,
    /// Directory of seccomp profiles on the node.
    pub seccomp_root: &'a str,
    /// Containers that name no profile get the runtime's own (`seccompDefault`).
    pub seccomp_default: bool,
    /// Groups that the pod's volumes ask for.
    pub volume_groups: &'a [i64],
}

/// A container's context.
///
/// # Errors
/// `runAsNonRoot` is violated; the text is for `CreateContainerConfigError`.
pub fn container(
    pod: &Pod,
    container: &Container,
    input: &SecurityInput<'_>,
) -> Result<proto::LinuxContainerSecurityContext, String> {
    let image = input.image;
    let shared = pod_context(pod);
    let own = container.security_context.clone().unwrap_or_default();
    let user = own.run_as_user.or(shared.run_as_user);
    check_non_root(pod, container, &own, &shared, user, image)?;
    let privileged = is_privileged(container);
    let unmasked = own.proc_mount.as_deref() == Some("Unmasked");
    let paths = |list: &[&str]| list.iter().map(|path| (*path).to_owned()).collect::<Vec<_>>();
    let capabilities = own.capabilities.clone().unwrap_or_default();
    Ok(proto::LinuxContainerSecurityContext {
        capabilities: Some(proto::Capability {
            add_capabilities: capabilities.add.unwrap_or_default(),
            drop_capabilities: capabilities.drop.unwrap_or_default(),
        }),
        privileged,
        namespace_options: Some(namespaces(pod)),
        selinux_options: own.se_linux_options.as_ref().or(shared.se_linux_options.as_ref()).map(selinux),
        run_as_user: user.or(if image.username.is_empty() { image.uid } else { None }).map(int64),
        run_as_username: if user.is_none() { image.username.clone() } else { String::new() },
        run_as_group: own.run_as_group.or(shared.run_as_group).map(int64),
        readonly_rootfs: own.read_only_root_filesystem.unwrap_or(false),
        supplemental_groups: shared
            .fs_group
            .into_iter()
            .chain(shared.supplemental_groups.iter().flatten().copied())
            .chain(input.volume_groups.iter().copied())
            .collect(),
        no_new_privs: own.allow_privilege_escalation == Some(false),
        masked_paths: if unmasked { Vec::new() } else { paths(&MASKED).into_iter().chain(thermal()).collect() },
        readonly_paths: if unmasked { Vec::new() } else { paths(&READ_ONLY) },
        seccomp: Some(seccomp(own.seccomp_profile.as_ref().or(shared.seccomp_profile.as_ref()), input)),
        apparmor: apparmor::profile(pod, container).map(apparmor_profile),
    })
}

fn apparmor_profile(wanted: apparmor::Profile) -> proto::SecurityProfile {
    use proto::security_profile::ProfileType;
    match wanted {
        apparmor::Profile::RuntimeDefault => profile(ProfileType::RuntimeDefault, String::new()),
        apparmor::Profile::Unconfined => profile(ProfileType::Unconfined, String::new()),
        apparmor::Profile::Localhost(name) => profile(ProfileType::Localhost, name),
    }
}

/// Masked too, where the machine has them: they tell how busy the neighbours are.
fn thermal() -> Vec<String> {
    let entries = std::fs::read_dir("/sys/devices/system/cpu").into_iter().flatten().flatten();
    let mut found: Vec<String> = entries
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("cpu"))
        .map(|entry| entry.path().join("thermal_throttle"))
        .filter(|path| path.exists())
        .map(|path| path.display().to_string())
        .collect();
    found.sort_unstable();
    found
}

fn check_non_root(
    pod: &Pod,
    container: &Container,
    own: &SecurityContext,
    shared: &PodSecurityContext,
    user: Option<i64>,
    image: &ImageUser,
) -> Result<(), String> {
    if own.run_as_non_root.or(shared.run_as_non_root) != Some(true) {
        return Ok(());
    }
    let about = || {
        let metadata = &pod.metadata;
        let text = |part: &Option<String>| part.clone().unwrap_or_default();
        let (name, namespace, uid) = (text(&metadata.name), text(&metadata.namespace), text(&metadata.uid));
        format!("(pod: \"{name}_{namespace}({uid})\", container: {})", container.name)
    };
    match (user, image.uid) {
        (Some(0), _) => Err(format!("container's runAsUser breaks non-root policy {}", about())),
        (Some(_), _) => Ok(()),
        (None, _) if !image.username.is_empty() => Err(format!(
            "container has runAsNonRoot and image has non-numeric user ({}), cannot verify user is non-root {}",
            image.username,
            about()
        )),
        (None, Some(0) | None) => Err(format!("container has runAsNonRoot and image will run as root {}", about())),
        (None, Some(_)) => Ok(()),
    }
}

fn seccomp(wanted: Option<&SeccompProfile>, input: &SecurityInput<'_>) -> proto::SecurityProfile {
    use proto::security_profile::ProfileType;
    match wanted.map(|profile| profile.type_.as_str()) {
        Some("RuntimeDefault") => profile(ProfileType::RuntimeDefault, String::new()),
        Some("Localhost") => {
            let file = wanted.and_then(|profile| profile.localhost_profile.clone()).unwrap_or_default();
            profile(ProfileType::Localhost, format!("{}/{file}", input.seccomp_root))
        }
        None if input.seccomp_default => profile(ProfileType::RuntimeDefault, String::new()),
        _ => profile(ProfileType::Unconfined, String::new()),
    }
}

fn profile(kind: proto::security_profile::ProfileType, localhost_ref: String) -> proto::SecurityProfile {
    proto::SecurityProfile { profile_type: kind as i32, localhost_ref }
}

fn selinux(options: &SELinuxOptions) -> proto::SeLinuxOption {
    let text = |part: &Option<String>| part.clone().unwrap_or_default();
    proto::SeLinuxOption {
        user: text(&options.user),
        role: text(&options.role),
        r#type: text(&options.type_),
        level: text(&options.level),
    }
}

fn int64(value: i64) -> proto::Int64Value {
    proto::Int64Value { value }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn context(spec: serde_json::Value, image: ImageUser) -> Result<proto::LinuxContainerSecurityContext, String> {
        let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": spec})).unwrap();
        let input =
            SecurityInput { image: &image, seccomp_root: "/seccomp", seccomp_default: false, volume_groups: &[77] };
        container(&pod, &pod.spec.as_ref().unwrap().containers[0], &input)
    }

    #[test]
    fn a_container_overrides_its_pod() {
        let made = context(
            json!({"securityContext": {"runAsUser": 1, "runAsGroup": 2, "fsGroup": 7, "supplementalGroups": [8]},
                "containers": [{"name": "c", "securityContext": {"runAsUser": 3, "allowPrivilegeEscalation": false,
                    "readOnlyRootFilesystem": true, "capabilities": {"add": ["NET_ADMIN"], "drop": ["ALL"]}}}]}),
            ImageUser::default(),
        )
        .unwrap();
        assert_eq!(made.run_as_user.unwrap().value, 3);
        assert_eq!(made.run_as_group.unwrap().value, 2);
        assert_eq!(made.supplemental_groups, [7, 8, 77]);
        assert!(made.no_new_privs && made.readonly_rootfs && !made.privileged);
        assert_eq!(made.capabilities.unwrap().drop_capabilities, ["ALL"]);
        assert!(made.masked_paths.contains(&"/proc/kcore".to_owned()));
    }

    #[test]
    fn profiles_of_seccomp_and_apparmor() {
        use proto::security_profile::ProfileType;
        let pod: Pod = serde_json::from_value(json!({"spec": {"containers": [{"name": "none"},
            {"name": "local", "securityContext": {"seccompProfile": {"type": "Localhost", "localhostProfile": "p.json"},
                "appArmorProfile": {"type": "Localhost", "localhostProfile": "a"}}},
            {"name": "open", "securityContext": {"seccompProfile": {"type": "Unconfined"}, "procMount": "Unmasked"}}]}}))
        .unwrap();
        let of = |index: usize, seccomp_default: bool| {
            let image = ImageUser::default();
            let input = SecurityInput { image: &image, seccomp_root: "/s", seccomp_default, volume_groups: &[] };
            container(&pod, &spec::containers(&pod)[index], &input).unwrap()
        };
        assert_eq!(of(0, false).seccomp.unwrap().profile_type(), ProfileType::Unconfined);
        assert_eq!(of(0, true).seccomp.unwrap().profile_type(), ProfileType::RuntimeDefault);
        assert_eq!(of(1, true).seccomp.unwrap().localhost_ref, "/s/p.json");
        assert_eq!(of(1, true).apparmor.unwrap().localhost_ref, "a");
        let open = of(2, true);
        assert_eq!(open.seccomp.unwrap().profile_type(), ProfileType::Unconfined);
        assert!(open.masked_paths.is_empty() && open.readonly_paths.is_empty() && open.apparmor.is_none());
    }

    #[test]
    fn non_root_is_enforced() {
        let spec = json!({"securityContext": {"runAsNonRoot": true}, "containers": [{"name": "c"}]});
        assert!(context(spec.clone(), ImageUser { uid: Some(0), username: String::new() }).is_err());
        assert!(context(spec.clone(), ImageUser { uid: None, username: "web".into() }).is_err());
        assert!(context(spec, ImageUser { uid: Some(1000), username: String::new() }).is_ok());
    }
}
