//! Both sides change one twin in any order: a report is never lost, a wish of the cloud wins, and versions never go back.

use proptest::prelude::*;
use twin::payload::{Entries, Entry, TypeMetadata, Value, Version};
use twin::twin::Twin;

fn text(value: &str) -> Option<Value> {
    Some(Value { value: Some(value.to_owned()), metadata: None })
}

fn one(entry: Option<Entry>) -> Entries {
    Entries::from([("temperature".to_owned(), entry)])
}

fn reported(value: &str) -> Entries {
    one(Some(Entry { actual: text(value), ..Entry::default() }))
}

fn wished(value: &str, cloud: i64, edge: i64) -> Entries {
    let expected_version = Some(Version { cloud, edge });
    one(Some(Entry { expected: text(value), expected_version, ..Entry::default() }))
}

#[test]
fn an_unchanged_report_costs_no_write_and_is_answered_all_the_same() {
    let mut twin = Twin::default();
    assert_eq!(twin.update(&reported("20"), 1).expect("allowed").changed.len(), 1);
    let again = twin.update(&reported("20"), 2).expect("allowed");
    assert!(again.changed.is_empty() && again.report.is_empty());
    assert_eq!((again.result.len(), again.document.len()), (1, 1));
    let other = twin.update(&reported("21"), 3).expect("allowed");
    let version = other.report["temperature"].as_ref().and_then(|entry| entry.actual_version);
    assert_eq!(version, Some(Version { cloud: 0, edge: 2 }));
}

#[test]
fn an_older_wish_is_refused_and_the_cloud_hears_what_is_here() {
    let mut twin = Twin::default();
    assert!(twin.sync(&wished("30", 5, 0), 1).expect("allowed").report.is_empty());
    let older = twin.sync(&wished("25", 4, 0), 2).expect("allowed");
    let told = older.report["temperature"].clone().expect("an entry");
    assert_eq!((told.expected.and_then(|value| value.value).as_deref(), told.actual), (Some("30"), None));
    assert_eq!(told.expected_version, Some(Version { cloud: 5, edge: 0 }));
    assert!(older.changed.is_empty() && older.document.is_empty());
    // Without a version it is nobody's wish.
    let entry = Entry { expected: text("1"), ..Entry::default() };
    assert!(twin.sync(&one(Some(entry)), 3).expect("allowed").changed.is_empty());
}

#[test]
fn one_bad_property_refuses_all() {
    let mut twin = Twin::default();
    let kind = |kind: &str| Some(TypeMetadata { kind: kind.to_owned() });
    let good = Entry { actual: text("1"), metadata: kind("int"), ..Entry::default() };
    let mut entries = Entries::from([("good".to_owned(), Some(good.clone()))]);
    for (value, metadata, says) in [
        ("abc", kind("int"), "\"abc\" is no int"),
        ("1", kind("colour"), "there is no type \"colour\""),
        ("a b", None, "a value has at most 512"),
    ] {
        entries.insert("poor".to_owned(), Some(Entry { actual: text(value), metadata, ..Entry::default() }));
        let refusal = twin.update(&entries, 1).expect_err("refused");
        assert!(refusal.to_string().contains("\"poor\"") && refusal.to_string().contains(says), "{refusal}");
        assert_eq!((refusal.code(), twin.properties.len()), (400, 0));
    }
    entries.remove("poor");
    entries.insert("bad key!".to_owned(), Some(good));
    assert!(twin.update(&entries, 1).is_err());
}

#[test]
fn a_deleted_property_goes_on_with_its_versions() {
    let mut twin = Twin::default();
    twin.update(&reported("20"), 1).expect("allowed");
    let gone = twin.update(&one(None), 2).expect("allowed");
    let told = gone.report["temperature"].clone().expect("an entry");
    assert_eq!(told.metadata.map(|metadata| metadata.kind).as_deref(), Some("deleted"));
    assert_eq!(told.actual_version, Some(Version { cloud: 0, edge: 2 }));
    assert!(twin.get().is_empty() && twin.update(&one(None), 3).expect("allowed").changed.is_empty());
    let back = twin.update(&reported("22"), 4).expect("allowed");
    let told = back.report["temperature"].clone().expect("an entry");
    assert_eq!(told.actual_version, Some(Version { cloud: 0, edge: 3 }));
}

#[derive(Clone, Debug)]
enum Step {
    Report(u8),
    Wish(u8, i64),
    Delete,
}

proptest! {
    #[test]
    fn versions_never_go_back_and_what_is_refused_changes_nothing(
        steps in prop::collection::vec(
            prop_oneof![
                any::<u8>().prop_map(Step::Report),
                (any::<u8>(), 0..8_i64).prop_map(|(value, version)| Step::Wish(value, version)),
                Just(Step::Delete),
            ],
            1..60,
        ),
    ) {
        let mut twin = Twin::default();
        for (now, step) in steps.iter().enumerate() {
            let before = twin.properties.get("temperature").cloned();
            let now = now as i64;
            let outcome = match step {
                Step::Report(value) => twin.update(&reported(&value.to_string()), now),
                Step::Wish(value, cloud) => twin.sync(&wished(&value.to_string(), *cloud, 9), now),
                Step::Delete => twin.update(&one(None), now),
            }.expect("allowed");
            let after = twin.properties.get("temperature");
            if let (Some(before), Some(after)) = (&before, after) {
                for (old, new) in [(&before.expected, &after.expected), (&before.actual, &after.actual)] {
                    prop_assert!(new.version.cloud >= old.version.cloud && new.version.edge >= old.version.edge);
                }
            }
            match step {
                Step::Report(value) => {
                    prop_assert_eq!(&after.expect("reported").actual.value, &value.to_string());
                }
                Step::Wish(value, cloud) => {
                    let was = before.as_ref().map_or(0, |before| before.expected.version.cloud);
                    let taken = outcome.changed.contains("temperature");
                    prop_assert_eq!(taken, *cloud >= was && before.as_ref().is_none_or(|b| b.expected.version.edge <= 9));
                    if taken {
                        prop_assert_eq!(&after.expect("wished").expected.value, &value.to_string());
                    }
                }
                Step::Delete => prop_assert!(after.is_none_or(|property| !property.is_live())),
            }
            if outcome.changed.is_empty() {
                let same = |property: &twin::twin::Property| (property.expected.version, property.actual.version);
                prop_assert_eq!(before.as_ref().map(same), after.map(same));
            }
        }
    }
}
