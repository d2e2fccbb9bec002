//! Settings of what the node takes back, and of what it shows of itself.

use std::collections::BTreeMap;
use std::time::Duration;

use api::edgecore::{Config, go_duration};
use edged::Settings;
use edged::settings::EvictionMaps;

/// Fills them in. An entry that makes no sense is told in the log with its place; the default stays.
pub(super) fn read(config: &Config, settings: &mut Settings) {
    let document = &config.document;
    let at = |key: &str| format!("modules.edged.tailoredKubeletConfig.{key}");
    let texts = |key: &str| -> BTreeMap<String, String> {
        let entries = document.get(&at(key)).as_object().into_iter().flatten();
        // A bare number is as good as a text.
        entries
            .map(|(key, value)| (key.clone(), value.as_str().map_or_else(|| value.to_string(), str::to_owned)))
            .collect()
    };
    let wrong = |place: &str, problem: &str| {
        tracing::error!(place = at(place), problem, "setting is not understood; the default is used");
    };
    let graces = texts("evictionSoftGracePeriod").into_iter().filter_map(|(signal, text)| {
        let grace = go_duration(&text);
        if grace.is_none() {
            wrong(&format!("evictionSoftGracePeriod.{signal}"), "is no duration: write for example 1m30s");
        }
        Some((signal, grace?))
    });
    let maps = EvictionMaps {
        hard: texts("evictionHard"),
        soft: texts("evictionSoft"),
        soft_grace: graces.collect::<BTreeMap<String, Duration>>(),
        min_reclaim: texts("evictionMinimumReclaim"),
    };
    match maps.thresholds() {
        Ok(thresholds) => settings.eviction.thresholds = thresholds,
        Err(errors) => {
            errors.iter().for_each(|error| wrong(&format!("{}.{}", error.map, error.signal), &error.problem))
        }
    }
    settings.eviction.pressure_transition = config.duration(&at("evictionPressureTransitionPeriod"));
    settings.eviction.max_pod_grace = document.number(&at("evictionMaxPodGracePeriod"));
    for key in ["systemReserved", "kubeReserved"] {
        for name in settings.reserved.add(&texts(key)) {
            wrong(&format!("{key}.{name}"), "is no quantity of cpu, memory, ephemeral-storage or pid");
        }
    }
    let percent = |key: &str| u64::try_from(document.number(&at(key))).ok();
    let image_gc = &mut settings.image_gc;
    image_gc.high_percent = percent("imageGCHighThresholdPercent").unwrap_or(image_gc.high_percent);
    image_gc.low_percent = percent("imageGCLowThresholdPercent").unwrap_or(image_gc.low_percent);
    image_gc.min_age = config.duration(&at("imageMinimumGCAge"));
    image_gc.max_age = config.duration(&at("imageMaximumGCAge"));
    settings.pods_per_core = i32::try_from(document.number(&at("podsPerCore"))).unwrap_or_default();
    settings.node_status_max_images = document.number(&at("nodeStatusMaxImages"));
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn settings(text: &str) -> Settings {
        super::super::edged(&Config::parse(text, Path::new("edgecore.yaml")).unwrap())
    }

    #[test]
    fn upstreams_file_gives_upstreams_defaults() {
        let (read, default) = (settings(""), Settings::new("n1"));
        let sorted = |settings: &Settings| {
            let mut thresholds = settings.eviction.thresholds.clone();
            thresholds.sort_by_key(|threshold| threshold.signal);
            thresholds
        };
        assert_eq!(sorted(&read), sorted(&default));
        assert_eq!(read.eviction.pressure_transition, default.eviction.pressure_transition);
        assert_eq!(
            (read.image_gc, read.reserved, &read.pause_image),
            (default.image_gc, default.reserved, &default.pause_image)
        );
        assert_eq!(read.static_pod_path, Path::new("/etc/kubeedge/manifests"));
    }

    #[test]
    fn thresholds_and_reservations_are_read() {
        let read = settings(
            "modules: {edged: {tailoredKubeletConfig: {evictionHard: {memory.available: 5%}, evictionSoft: {nodefs.available: 20%}, \
             evictionSoftGracePeriod: {nodefs.available: 1m30s}, kubeReserved: {memory: 64Mi}, systemReserved: {memory: 64Mi, cpu: 1}}}}",
        );
        assert!(read.eviction.thresholds.iter().any(|threshold| threshold.grace == Duration::from_secs(90)));
        assert_eq!((read.reserved.memory, read.reserved.cpu), (128 << 20, 1000));
        let wrong = settings("modules: {edged: {tailoredKubeletConfig: {evictionHard: {memory.available: some}}}}");
        assert_eq!(wrong.eviction, Settings::new("n1").eviction, "a mistake changes nothing");
    }
}
