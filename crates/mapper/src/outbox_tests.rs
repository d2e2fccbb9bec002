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

fn everything() -> News {
    news(&[("t", ""), ("u", "")], Some("online"))
}

/// Takes what is expected of this device.
fn taken(outbox: &Outbox, name: &str, expected: &News) -> Sender {
    let (sender, news) = outbox.take().expect("something is due");
    assert_eq!((&sender.id, &news), (&id(name), expected));
    sender
}

fn name((sender, _): (Sender, News)) -> String {
    sender.id.name
}

#[tokio::test(start_paused = true)]
async fn what_could_not_be_told_waits_below_what_is_newer() {
    let outbox = Outbox::default();
    outbox.open(&id("a"));
    outbox.put(&id("a"), news(&[("t", "1"), ("u", "1")], Some("online")));
    let sender = taken(&outbox, "a", &news(&[("t", "1"), ("u", "1")], Some("online")));
    outbox.put(&id("a"), news(&[("t", "2")], None));
    assert_eq!(outbox.take(), None, "one at a time");
    outbox.later(&sender, &everything(), Vec::new(), "");
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
    assert_eq!(again, (sender.clone(), news(&[("t", "2"), ("u", "1")], Some("online"))));
    outbox.told(&sender, Vec::new());
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
    let sender = taken(&outbox, "c", &news(&[("t", "1")], None));
    outbox.later(&sender, &everything(), Vec::new(), "");
    assert_eq!(outbox.take().map(name).as_deref(), Some("a"));
    outbox.take_all_back();
    let mut again = [outbox.take(), outbox.take()].map(|taken| taken.map(name));
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
    let sender = taken(&outbox, "a", &news(&[("u", "1")], None));
    outbox.close(&id("a"));
    outbox.later(&sender, &everything(), Vec::new(), "");
    tokio::time::advance(LONGEST_WAIT).await;
    assert_eq!(outbox.take(), None);
}

#[tokio::test(start_paused = true)]
async fn a_namesake_gets_no_answer_of_its_predecessor() {
    let outbox = Outbox::default();
    outbox.open(&id("a"));
    outbox.put(&id("a"), news(&[("t", "1")], None));
    let gone = taken(&outbox, "a", &news(&[("t", "1")], None));
    outbox.close(&id("a"));
    outbox.open(&id("a"));
    outbox.put(&id("a"), news(&[("t", "2")], None));
    outbox.later(&gone, &everything(), Vec::new(), "");
    let here = taken(&outbox, "a", &news(&[("t", "2")], None));
    // It is still on its way, and may have to come back.
    outbox.told(&gone, Vec::new());
    outbox.later(&here, &everything(), Vec::new(), "");
    tokio::time::advance(LONGEST_WAIT).await;
    taken(&outbox, "a", &news(&[("t", "2")], None));
}

#[tokio::test(start_paused = true)]
async fn only_what_failed_is_told_again() {
    let outbox = Outbox::default();
    outbox.open(&id("a"));
    outbox.put(&id("a"), news(&[("t", "1"), ("u", "1")], Some("online")));
    let sender = taken(&outbox, "a", &news(&[("t", "1"), ("u", "1")], Some("online")));
    outbox.later(&sender, &news(&[("u", "1")], None), Vec::new(), "");
    tokio::time::advance(LONGEST_WAIT).await;
    taken(&outbox, "a", &news(&[("u", "1")], None));
}
