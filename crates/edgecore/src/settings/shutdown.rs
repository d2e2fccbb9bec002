//! How pods end when the machine shuts down: `shutdownGracePeriod` and its companions.

use std::time::Duration;

use api::edgecore::Config;
use edged::settings::ShutdownSettings;

const KUBELET: &str = "modules.edged.tailoredKubeletConfig";

/// Reads them; none when they are not set, or contradict each other, which is told.
pub(super) fn read(config: &Config) -> Option<ShutdownSettings> {
    let period = |key: &str| config.duration(&format!("{KUBELET}.{key}"));
    let list = config.document.get(&format!("{KUBELET}.shutdownGracePeriodByPodPriority"));
    let by_priority = list.as_array().into_iter().flatten().filter_map(group);
    let made =
        ShutdownSettings::new(period("shutdownGracePeriod"), period("shutdownGracePeriodCriticalPods"), by_priority);
    match made {
        Ok(settings) => settings,
        Err(error) => {
            tracing::warn!(at = KUBELET, %error, "a shutdown of the machine does not wait for pods");
            None
        }
    }
}

fn group(entry: &serde_json::Value) -> Option<(i32, Duration)> {
    let priority = i32::try_from(entry["priority"].as_i64().unwrap_or_default()).ok();
    let seconds = entry["shutdownGracePeriodSeconds"].as_u64();
    let found = priority.zip(seconds);
    if found.is_none() {
        let at = format!("{KUBELET}.shutdownGracePeriodByPodPriority");
        tracing::warn!(at, %entry, "left out: it needs a priority and shutdownGracePeriodSeconds, both whole numbers");
    }
    found.map(|(priority, seconds)| (priority, Duration::from_secs(seconds)))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn groups(keys: &str) -> Vec<(i32, u64)> {
        let text = format!("modules: {{edged: {{tailoredKubeletConfig: {{{keys}}}}}}}");
        let read = read(&Config::parse(&text, Path::new("edgecore.yaml")).unwrap());
        read.into_iter().flat_map(|s| s.groups).map(|group| (group.priority, group.period.as_secs())).collect()
    }

    #[test]
    fn periods_are_read_and_off_by_default() {
        let list = "shutdownGracePeriodByPodPriority: [{priority: 10, shutdownGracePeriodSeconds: 7}, {priority: 0}]";
        for (keys, expected) in [
            ("", vec![]),
            ("shutdownGracePeriod: 30s, shutdownGracePeriodCriticalPods: 10s", vec![(0, 20), (2_000_000_000, 10)]),
            ("shutdownGracePeriod: 10s, shutdownGracePeriodCriticalPods: 30s", vec![]),
            (list, vec![(10, 7)]),
        ] {
            assert_eq!(groups(keys), expected, "{keys}");
        }
    }
}
