//! Decision tables of eviction.
#![allow(clippy::unwrap_used, missing_docs, reason = "tests may panic and speak for themselves")]

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Pod;
use podlife::eviction::{
    Amount, Observation, Observations, Pressure, Resource, Shortage, Signal, Threshold, Watch,
    message::{self, Consumer},
    rank::{self, Candidate},
    threshold::{Texts, parse},
};
use serde_json::json;

const MI: u64 = 1 << 20;

fn map(entries: &[(&str, &str)]) -> BTreeMap<String, String> {
    entries.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn quantity(text: &str) -> Option<u64> {
    text.strip_suffix("Mi").map_or_else(|| text.parse().ok(), |mebibytes| Some(mebibytes.parse::<u64>().ok()? * MI))
}

fn observed(entries: &[(Signal, u64, u64)]) -> Observations {
    let one = |&(signal, available, capacity)| (signal, Observation { available, capacity });
    entries.iter().map(one).collect()
}

fn threshold(signal: Signal, value: Amount, grace: u64, min_reclaim: Option<Amount>) -> Threshold {
    Threshold { signal, value, grace: Duration::from_secs(grace), min_reclaim }
}

#[test]
fn thresholds_are_read_from_their_maps() {
    let hard = map(&[("memory.available", "100Mi"), ("nodefs.available", "10%"), ("pid.available", "0")]);
    let soft = map(&[("memory.available", "200Mi")]);
    let grace = BTreeMap::from([("memory.available".to_owned(), Duration::from_secs(90))]);
    let reclaim = map(&[("memory.available", "50Mi"), ("imagefs.available", "5%")]);
    let read = parse(Texts { hard: &hard, soft: &soft, soft_grace: &grace, min_reclaim: &reclaim }, quantity).unwrap();
    let reclaim = Some(Amount::Absolute(50 * MI));
    assert_eq!(
        read,
        [
            threshold(Signal::MemoryAvailable, Amount::Absolute(100 * MI), 0, reclaim),
            threshold(Signal::AllocatableMemoryAvailable, Amount::Absolute(100 * MI), 0, reclaim),
            threshold(Signal::NodeFsAvailable, Amount::Part(0.1), 0, None),
            threshold(Signal::MemoryAvailable, Amount::Absolute(200 * MI), 90, reclaim),
        ]
    );
}

#[test]
fn every_mistake_is_named() {
    let hard = map(&[("memory.avail", "1"), ("nodefs.available", "110%"), ("imagefs.available", "lots")]);
    let soft = map(&[("memory.available", "1")]);
    let none = BTreeMap::new();
    let texts = Texts { hard: &hard, soft: &soft, soft_grace: &BTreeMap::new(), min_reclaim: &none };
    let errors = parse(texts, quantity).unwrap_err();
    let texts: Vec<String> = errors.iter().map(ToString::to_string).collect();
    assert_eq!(
        texts[0],
        "evictionHard.imagefs.available: \"lots\" is neither a quantity (100Mi) nor a percentage from 0% to 100%"
    );
    assert!(texts[1].starts_with("evictionHard.memory.avail: is no eviction signal; there are memory.available, "));
    assert!(texts[2].starts_with("evictionHard.nodefs.available: \"110%\" is neither"));
    assert!(texts[3].starts_with("evictionSoft.memory.available: needs a grace period"));
    assert_eq!(texts.len(), 4);
}

#[test]
fn parts_are_rounded_as_the_kubelet_does() {
    assert_eq!(Amount::Part(0.1).of(264_212_084 * 1024), 27_055_317_804);
    assert_eq!(Amount::Absolute(7).of(3), 7);
}

#[test]
fn a_hard_threshold_holds_at_once_and_its_condition_stays_for_a_while() {
    let mut watch = Watch::new(
        vec![threshold(Signal::MemoryAvailable, Amount::Absolute(100 * MI), 0, None)],
        Duration::from_secs(300),
    );
    let start = Instant::now();
    let at = |seconds| start + Duration::from_secs(seconds);
    let good = observed(&[(Signal::MemoryAvailable, 100 * MI, 1 << 30)]);
    let bad = observed(&[(Signal::MemoryAvailable, 52 * MI, 1 << 30)]);
    assert_eq!(watch.observe(&good, at(0)), []);
    assert!(!watch.pressure(at(0)).any());
    let shortage = Shortage { signal: Signal::MemoryAvailable, hard: true, threshold: 100 * MI, available: 52 * MI };
    assert_eq!(watch.observe(&bad, at(10)), [shortage]);
    let memory = Pressure { memory: true, ..Default::default() };
    assert_eq!(watch.pressure(at(10)), memory);
    assert_eq!(watch.observe(&good, at(20)), []);
    assert_eq!(watch.pressure(at(309)), memory);
    assert!(!watch.pressure(at(310)).any());
    // What cannot be read changes nothing.
    assert_eq!(watch.observe(&bad, at(400)).len(), 1);
    assert_eq!(watch.observe(&Observations::new(), at(410)), []);
    assert_eq!(watch.pressure(at(800)), memory, "not seen to end");
}

#[test]
fn a_soft_threshold_holds_after_its_grace_period() {
    let mut watch =
        Watch::new(vec![threshold(Signal::NodeFsInodesFree, Amount::Part(0.05), 30, None)], Duration::from_secs(300));
    let start = Instant::now();
    let at = |seconds| start + Duration::from_secs(seconds);
    let bad = observed(&[(Signal::NodeFsInodesFree, 49, 1000)]);
    let good = observed(&[(Signal::NodeFsInodesFree, 50, 1000)]);
    assert_eq!(watch.observe(&bad, at(0)), []);
    assert!(watch.pressure(at(0)).disk, "the condition does not wait");
    assert_eq!(watch.observe(&bad, at(29)), []);
    assert_eq!(watch.observe(&good, at(30)), []);
    assert_eq!(watch.observe(&bad, at(31)), []);
    let shortages = watch.observe(&bad, at(61));
    assert!(!shortages[0].hard && shortages[0].resource() == Resource::Inodes);
}

#[test]
fn more_must_be_freed_than_was_missing() {
    let mut watch = Watch::new(
        vec![threshold(Signal::ImageFsAvailable, Amount::Absolute(100), 0, Some(Amount::Absolute(50)))],
        Duration::from_secs(300),
    );
    let now = Instant::now();
    let free = |bytes| observed(&[(Signal::ImageFsAvailable, bytes, 1000)]);
    assert_eq!(watch.observe(&free(120), now), [], "not crossed yet");
    assert_eq!(watch.observe(&free(99), now).len(), 1);
    assert!(!watch.is_resolved(Signal::ImageFsAvailable, &free(149)));
    assert_eq!(watch.observe(&free(149), now).len(), 1);
    assert!(watch.is_resolved(Signal::ImageFsAvailable, &free(150)));
    assert_eq!(watch.observe(&free(150), now), []);
    assert_eq!(watch.observe(&free(120), now), []);
}

#[test]
fn memory_comes_first() {
    let all = [Signal::NodeFsAvailable, Signal::PidAvailable, Signal::MemoryAvailable];
    let mut watch = Watch::new(
        all.map(|signal| threshold(signal, Amount::Absolute(10), 0, None)).to_vec(),
        Duration::from_secs(300),
    );
    let bad = observed(&all.map(|signal| (signal, 1, 100)));
    let now = Instant::now();
    let order: Vec<Signal> = watch.observe(&bad, now).iter().map(|shortage| shortage.signal).collect();
    assert_eq!(order, [Signal::MemoryAvailable, Signal::NodeFsAvailable, Signal::PidAvailable]);
    assert_eq!(watch.pressure(now).names(), ["MemoryPressure", "DiskPressure", "PIDPressure"]);
}

#[test]
fn who_goes_first() {
    let candidate = |uid: &str, priority, request, usage| Candidate { uid: uid.into(), priority, request, usage };
    let table = [
        (
            Resource::Memory,
            vec![
                candidate("below-request", 0, 300, Some(200)),
                candidate("important", 1000, 0, Some(900)),
                candidate("little-over", 0, 100, Some(150)),
                candidate("much-over", 0, 100, Some(250)),
                candidate("unknown", 5000, 0, None),
                candidate("below-and-important", 10, 300, Some(290)),
            ],
            vec!["unknown", "much-over", "little-over", "important", "below-request", "below-and-important"],
        ),
        (
            Resource::Inodes,
            vec![candidate("a", 0, 0, Some(5)), candidate("b", 0, 0, Some(50)), candidate("c", -1, 0, Some(0))],
            vec!["c", "b", "a"],
        ),
        (Resource::Pids, vec![candidate("a", 7, 0, Some(500)), candidate("b", 0, 0, Some(50))], vec!["b", "a"]),
    ];
    for (resource, mut candidates, order) in table {
        rank::rank(resource, &mut candidates);
        let uids: Vec<&str> = candidates.iter().map(|candidate| candidate.uid.as_str()).collect();
        assert_eq!(uids, order, "{resource:?}");
    }
}

#[test]
fn who_never_goes() {
    for (pod, critical) in [
        (json!({"spec": {"containers": []}}), false),
        (json!({"spec": {"containers": [], "priority": 1_999_999_999}}), false),
        (json!({"spec": {"containers": [], "priority": 2_000_000_000}}), true),
        (json!({"metadata": {"annotations": {"kubernetes.io/config.source": "file"}}}), true),
        (json!({"metadata": {"annotations": {"kubernetes.io/config.source": "api"}}}), false),
        (json!({"metadata": {"annotations": {"kubernetes.io/config.mirror": "x"}}}), true),
    ] {
        let pod: Pod = serde_json::from_value(pod).unwrap();
        assert_eq!(rank::is_critical(&pod), critical, "{pod:?}");
    }
}

#[test]
fn words() {
    let memory = Shortage { signal: Signal::MemoryAvailable, hard: true, threshold: 100 * MI, available: 52 * MI };
    let consumer = |name: &str, usage, request| Consumer { name: name.into(), usage, request };
    let containers = [
        consumer("c", Some(300 * MI), 100 * MI),
        consumer("modest", Some(5), 100 * MI),
        consumer("unknown", None, 0),
        consumer("bare", Some(4097), 0),
    ];
    assert_eq!(
        message::low_on_resource(&memory, &containers),
        "The node was low on resource: memory. Threshold quantity: 100Mi, available: 52Mi. Container c was using 300Mi, \
         request is 100Mi, has larger consumption of memory. Container bare was using 4097, request is 0, has larger \
         consumption of memory. "
    );
    let pids = Shortage { signal: Signal::PidAvailable, hard: true, threshold: 32000, available: 31 };
    assert_eq!(
        message::low_on_resource(&pids, &[]),
        "The node was low on resource: pids. Threshold quantity: 32k, available: 31. "
    );
    assert_eq!(message::reclaiming(Resource::EphemeralStorage), "Attempting to reclaim ephemeral-storage");
    assert_eq!(message::empty_dir("v", "1Gi"), "Usage of EmptyDir volume \"v\" exceeds the limit \"1Gi\". ");
    assert_eq!(
        message::pod_storage(2 << 30),
        "Pod ephemeral local storage usage exceeds the total limit of containers 2Gi. "
    );
    assert_eq!(
        message::container_storage("c", "1Gi"),
        "Container c exceeded its local ephemeral storage limit \"1Gi\". "
    );
    assert_eq!(
        (message::binary(0), message::binary(1 << 60), message::decimal(1_500)),
        ("0".into(), "1Ei".into(), "1500".into())
    );
}
