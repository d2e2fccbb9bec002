use super::*;

fn news(values: &[(&str, &str)], state: Option<&'static str>) -> News {
    let twins = values.iter().map(|(name, value)| {
        let reported = Some(dmi::v1beta1::TwinProperty { value: (*value).to_owned(), metadata: Default::default() });
        ((*name).to_owned(), Twin { property_name: (*name).to_owned(), reported, observed_desired: None })
    });
    News { twins: twins.collect(), state }
}

fn id(name: &str) -> Id {
    Id::new("", name)
}

#[tokio::test(start_paused = true)]
async fn what_could_not_be_told_waits_below_what_is_newer() {
    let outbox = Outbox::default();
    outbox.open(&id("a"));
    outbox.put(&id("a"), news(&[("t", "1"), ("u", "1")], Some("online")));
    assert_eq!(outbox.take(), Some((id("a"), news(&[("t", "1"), ("u", "1")], Some("online")))));
    outbox.put(&id("a"), news(&[("t", "2")], None));
    assert_eq!(outbox.take(), None, "one at a time");
    outbox.later(&id("a"), "");
    assert_eq!(outbox.take(), None, "not at once");
    let again = async {
        loop {
            outbox.due().await;
            if let Some(taken) = outbox.take() {
                return taken;
            }
        }
    };
    let again = tokio::time::timeout(FIRST_WAIT * 2, again).await.expect("within the first wait");
    assert_eq!(again, (id("a"), news(&[("t", "2"), ("u", "1")], Some("online"))));
    outbox.told(&id("a"), Vec::new());
    assert_eq!(outbox.take(), None);
}

#[tokio::test(start_paused = true)]
async fn one_that_waits_delays_no_other_and_the_longest_is_first() {
    let outbox = Outbox::default();
    for name in ["a", "b", "c"] {
        outbox.open(&id(name));
    }
    outbox.put(&id("c"), news(&[("t", "1")], None));
    tokio::time::advance(Duration::from_millis(1)).await;
    outbox.put(&id("a"), news(&[("t", "1")], None));
    assert_eq!(outbox.take().map(|(id, _)| id), Some(id("c")));
    outbox.later(&id("c"), "");
    assert_eq!(outbox.take().map(|(id, _)| id), Some(id("a")));
    outbox.take_all_back();
    let mut again = [outbox.take(), outbox.take()].map(|taken| taken.map(|(id, _)| id.name));
    again.sort();
    assert_eq!(again, [Some("a".to_owned()), Some("c".to_owned())]);
}

#[tokio::test(start_paused = true)]
async fn a_device_that_has_gone_is_not_told_of() {
    let outbox = Outbox::default();
    outbox.put(&id("a"), news(&[("t", "1")], None));
    assert_eq!(outbox.take(), None);
    outbox.open(&id("a"));
    outbox.put(&id("a"), news(&[("t", "1"), ("u", "1")], None));
    outbox.retain(&id("a"), |name| name == "u");
    assert_eq!(outbox.take(), Some((id("a"), news(&[("u", "1")], None))));
    outbox.close(&id("a"));
    outbox.later(&id("a"), "");
    tokio::time::advance(LONGEST_WAIT).await;
    assert_eq!(outbox.take(), None);
}
