//! Commands and flags of upstream's keadm that this version does not have: why, and what to do instead.

use std::ffi::OsString;

use crate::cli::OldJoin;
use crate::version::{GIT_VERSION, MINOR};

/// Upstream's commands without their sub-commands, each with the way to go.
const COMMANDS: &[(&str, &str)] = &[
    ("init", "run `cloudcore --config FILE` beside your cluster, or `cloudcore --standalone DIR` without one"),
    ("manifest", "there is no chart to print; run `cloudcore --config FILE`"),
    ("reset cloud", "stop cloudcore; what it keeps in the cluster is in namespace kubeedge"),
    ("upgrade", "replace the binary, then restart the service: configuration, certificates and database stay"),
    ("backup", "copy edgecore.yaml and the database file that it names while edgecore is stopped"),
    ("rollback", "put the older binary back, then restart the service"),
    ("config-update", "edit edgecore.yaml, then restart the service"),
    ("config", "no images are needed"),
    ("batch", "run `keadm join` on each node"),
    ("ctl", "use kubectl against the cloud"),
    ("debug", "look at the log of edgecore (`journalctl -u edgecore`)"),
    ("deprecated", "use `keadm join` and `keadm reset edge`"),
    ("beta", "it is empty in upstream too"),
];

/// What to tell about a command that is not here.
pub fn command(before: &[OsString], words: &[OsString]) -> String {
    let mut words: Vec<String> = before.iter().chain(words).map(|word| word.to_string_lossy().into_owned()).collect();
    words.truncate(2);
    let known = |name: &str| COMMANDS.iter().find(|(command, _)| *command == name);
    if let Some((name, way)) = known(&words.join(" ")).or_else(|| known(words.first().map_or("", String::as_str))) {
        return format!("`keadm {name}` is not in this version: {way}");
    }
    format!("`keadm {}` is not known: use gettoken, join, reset edge or version (see `keadm --help`)", words.join(" "))
}

/// Flags of `join` that have no effect here are warned about.
///
/// # Errors
/// A flag asks for something that would not happen.
pub fn join_flags(old: &OldJoin) -> Result<Vec<&'static str>, String> {
    if let Some(version) = &old.kubeedge_version {
        let wanted = version.trim_start_matches('v');
        let fits = wanted == MINOR || wanted.strip_prefix(MINOR).is_some_and(|rest| rest.starts_with('.'));
        if !fits {
            return Err(format!(
                "--kubeedge-version={version}: nothing is downloaded; this keadm belongs to edgecore {GIT_VERSION}. \
                 Use the keadm of the wanted version, or leave the flag out"
            ));
        }
    }
    if let Some(registry) = old.image_repository.as_ref().filter(|registry| !registry.is_empty()) {
        return Err(format!(
            "--image-repository={registry}: no installation image is pulled; put the program edgecore beside keadm or \
             into /usr/local/bin, and leave the flag out"
        ));
    }
    let warnings = [
        (old.runtimetype.is_some(), "--runtimetype has no effect: any runtime with CRI v1 will do"),
        (old.with_mqtt.is_some(), "--with-mqtt has no effect: no broker is installed; name yours in modules.eventBus"),
        (old.cert_path.is_some(), "--certPath has no effect: use --set modules.edgeHub.tlsCertFile=… and the like"),
        (old.tarballpath.is_some(), "--tarballpath has no effect: nothing is unpacked"),
    ];
    Ok(warnings.into_iter().filter_map(|(given, warning)| given.then_some(warning)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_of_upstream_is_answered() {
        let told = |line: &str| command(&[], &line.split(' ').map(OsString::from).collect::<Vec<_>>());
        assert!(told("init --advertise-address=1.2.3.4").contains("cloudcore --standalone"));
        assert!(told("reset cloud").contains("namespace kubeedge"));
        assert!(told("config images list").contains("`keadm config` is not in this version"));
        assert!(told("jion").contains("is not known"));
        assert!(command(&["reset".into()], &["cloud".into()]).contains("stop cloudcore"));
        assert!(command(&["reset".into()], &["moon".into()]).contains("`keadm reset moon` is not known"));
    }

    #[test]
    fn flags_that_would_do_nothing_are_told() {
        let version = |text: &str| OldJoin { kubeedge_version: Some(text.into()), ..OldJoin::default() };
        for fits in ["1.23.1", "v1.23.0", "v1.23"] {
            assert_eq!(join_flags(&version(fits)), Ok(vec![]), "{fits}");
        }
        for other in ["v1.22.0", "1.230.0", "latest"] {
            assert!(join_flags(&version(other)).is_err(), "{other}");
        }
        let image = OldJoin { image_repository: Some("r.example".into()), ..OldJoin::default() };
        assert!(join_flags(&image).is_err_and(|text| text.contains("/usr/local/bin")));
        let old = OldJoin { runtimetype: Some("remote".into()), with_mqtt: Some(false), ..OldJoin::default() };
        assert_eq!(join_flags(&old).map(|warnings| warnings.len()), Ok(2));
    }
}
