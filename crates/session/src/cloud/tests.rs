use super::*;
use wire::{Content, Route};

fn message(id: &str, verb: &str, path: &str) -> Message {
    Message::new(id.to_owned(), 0, Route::new("edgecontroller", "resource", verb, path), Content::null())
}

fn pod(object: usize, version: usize) -> Message {
    let mut message = message(&format!("{object}-{version}"), "update", &format!("default/pod/{object}"));
    message.header.resource_version = version.to_string();
    message
}

fn offer(queue: &mut NodeQueue, object: usize, version: usize) {
    queue.offer(&object.to_string(), version as u64, pod(object, version));
}

fn sent(queue: &mut NodeQueue, now: Instant) -> Vec<String> {
    std::iter::from_fn(|| queue.next(now)).map(|message| message.header.msg_id).collect()
}

fn queue() -> (NodeQueue, Instant) {
    (NodeQueue::new(Window::UPSTREAM), Instant::now())
}

#[test]
fn the_newest_version_replaces_a_waiting_one_and_none_overtakes_itself() {
    let (mut queue, now) = queue();
    offer(&mut queue, 1, 1);
    assert_eq!(sent(&mut queue, now), ["1-1"]);
    offer(&mut queue, 1, 2);
    offer(&mut queue, 1, 3);
    assert!(sent(&mut queue, now).is_empty(), "version 1 is in flight");
    assert!(queue.acknowledge("1-2").is_none(), "never sent");
    assert_eq!(queue.acknowledge("1-1").expect("acknowledged").1.header.resource_version, "1");
    assert_eq!(sent(&mut queue, now), ["1-3"]);
    assert!(queue.acknowledge("1-1").is_none(), "late");
    assert!(queue.acknowledge("1-3").is_some());
    assert_eq!(queue.pending(), 0);
    offer(&mut queue, 1, 2);
    assert!(sent(&mut queue, now).is_empty(), "versions do not go back");
}

#[test]
fn what_is_not_acknowledged_is_sent_again_with_growing_waits() {
    let (mut queue, start) = queue();
    offer(&mut queue, 1, 1);
    assert_eq!(sent(&mut queue, start), ["1-1"]);
    let mut at = start;
    for seconds in [5, 10, 20, 40, 60, 60] {
        assert!(queue.next(at).is_none());
        at = queue.next_due().expect("due");
        assert_eq!(sent(&mut queue, at), ["1-1"]);
        assert_eq!(queue.next_due().expect("due") - at, Duration::from_secs(u64::min(seconds * 2, 60)));
    }
}

#[test]
fn what_is_sent_again_is_the_newest() {
    let (mut queue, now) = queue();
    offer(&mut queue, 1, 1);
    assert_eq!(sent(&mut queue, now), ["1-1"]);
    offer(&mut queue, 1, 2);
    assert!(queue.next(now).is_none());
    assert_eq!(sent(&mut queue, now + Window::UPSTREAM.resend_after), ["1-2"]);
    assert!(queue.acknowledge("1-1").is_none(), "the old one does not count any more");
    assert!(queue.acknowledge("1-2").is_some());
    assert_eq!(queue.pending(), 0);
    assert!(queue.next(now + Window::UPSTREAM.longest_wait).is_none());
}

#[test]
fn a_refusal_is_told_once_for_each_sending_and_repeated_soon() {
    let now = Instant::now();
    let mut queue = NodeQueue::new(Window::WIDE);
    offer(&mut queue, 1, 1);
    assert!(queue.refused("1-1", now).is_none(), "not sent yet");
    sent(&mut queue, now);
    assert_eq!(queue.refused("1-1", now).map(|(uid, _)| uid), Some("1"));
    assert!(queue.refused("1-1", now).is_none(), "told already");
    let due = queue.next_due().expect("due");
    assert_eq!(due - now, Duration::from_secs(5));
    assert_eq!(sent(&mut queue, due), ["1-1"]);
    assert!(queue.refused("1-1", due).is_some());
    assert_eq!(queue.next_due().expect("due") - due, Duration::from_secs(10));
    assert!(queue.acknowledge("1-1").is_some() && queue.refused("1-1", due).is_none());
}

#[test]
fn one_full_lane_does_not_hold_up_the_other() {
    let (mut queue, now) = queue();
    for n in 0..MAX_UNACKED {
        queue.post(pod(n, 0)).expect("room");
    }
    assert!(queue.post(pod(0, 0)).is_err());
    (0..50).for_each(|n| offer(&mut queue, n, 1));
    assert_eq!(sent(&mut queue, now).len(), MAX_UNACKED + Window::UPSTREAM.objects);
}

#[test]
fn the_node_goes_before_pods_and_pods_before_the_rest() {
    let (mut queue, now) = queue();
    for (n, path) in ["a/secret/s", "a/pod/p", "a/configmap/c", "null/node/n", "nonsense"].into_iter().enumerate() {
        queue.offer(path, 1, message(&n.to_string(), "update", path));
    }
    assert_eq!(sent(&mut queue, now), ["3", "1", "0", "2", "4"]);
}

#[test]
fn bytes_in_flight_are_bounded_and_one_object_of_any_size_goes() {
    let (mut queue, now) = queue();
    let large = Content::text(&"x".repeat(Window::UPSTREAM.bytes));
    for n in 0..3 {
        queue.offer(&n.to_string(), 1, Message { content: large.clone(), ..pod(n, 1) });
    }
    for n in 0..3 {
        assert_eq!(sent(&mut queue, now), [format!("{n}-1")]);
        queue.acknowledge(&format!("{n}-1"));
    }
}

#[test]
fn what_waits_is_bounded_and_an_overflow_is_told_when_the_rest_has_arrived() {
    let (mut queue, now) = queue();
    let large = Content::text(&"x".repeat(1 << 20));
    for n in 0..100 {
        queue.offer(&n.to_string(), 1, Message { content: large.clone(), ..pod(n, 1) });
    }
    assert!(queue.pending() < 10);
    let mut arrived = 0;
    while queue.pending() > 0 {
        assert!(!queue.take_overflow());
        for id in sent(&mut queue, now) {
            arrived += 1;
            queue.acknowledge(&id);
        }
    }
    assert!(arrived > 5 && queue.take_overflow() && !queue.take_overflow());
    offer(&mut queue, 99, 1);
    assert_eq!(sent(&mut queue, now), ["99-1"], "what was left out may be offered again");
}

#[test]
fn an_overflow_is_told_though_objects_change_all_the_time_and_one_is_refused_for_ever() {
    let (mut queue, now) = queue();
    let large = Content::text(&"x".repeat(1 << 20));
    queue.offer("refused", 1, message("refused", "update", "default/secret/refused"));
    assert_eq!(sent(&mut queue, now), ["refused"]);
    assert!(queue.refused("refused", now).is_some());
    for n in 0..10 {
        queue.offer(&n.to_string(), 1, Message { content: large.clone(), ..pod(n, 1) });
    }
    let mut rounds = 0;
    while !queue.take_overflow() {
        rounds += 1;
        assert!(rounds < 20, "{} wait", queue.pending());
        let ids = sent(&mut queue, now);
        // Nothing of this may take the place of what was left out.
        offer(&mut queue, 100, rounds);
        let deletion = message(&format!("bye-{rounds}"), "delete", "default/pod/other");
        queue.offer(&format!("gone-{rounds}"), 1, Message { content: large.clone(), ..deletion });
        ids.iter().for_each(|id| drop(queue.acknowledge(id)));
    }
    assert_eq!(queue.pending(), 1, "the refused one");
    offer(&mut queue, 9, 1);
    assert_eq!(sent(&mut queue, now), ["9-1"]);
}

#[test]
fn an_overflow_leaves_out_no_deletion_of_what_is_on_its_way() {
    let (mut queue, now) = queue();
    let large = Content::text(&"x".repeat(1 << 20));
    for n in 0..100 {
        queue.offer(&n.to_string(), 1, Message { content: large.clone(), ..pod(n, 1) });
    }
    assert_eq!(sent(&mut queue, now), ["0-1"]);
    for n in [0, 1] {
        queue.offer(&n.to_string(), 2, message(&format!("bye-{n}"), "delete", &format!("default/pod/{n}")));
    }
    let mut all = vec!["0-1".to_owned()];
    for at in 0.. {
        let Some(id) = all.get(at) else { break };
        queue.acknowledge(id);
        all.extend(sent(&mut queue, now));
    }
    assert!(all.contains(&"bye-0".to_owned()) && all.contains(&"bye-1".to_owned()), "{all:?}");
    assert!(!all.contains(&"1-1".to_owned()), "{all:?}");
}

#[test]
fn what_waits_for_a_stuck_deletion_holds_no_overflow_back() {
    let (mut queue, now) = queue();
    let path = "default/pod/web";
    queue.offer("old", 1, message("bye", "delete", path));
    assert_eq!(sent(&mut queue, now), ["bye"]);
    queue.offer("new", 2, message("new", "insert", path));
    let large = Content::text(&"x".repeat(MAX_WAITING_BYTES));
    queue.offer("1", 1, Message { content: large.clone(), ..pod(1, 1) });
    assert!(queue.refused("bye", now).is_some());
    assert!(queue.take_overflow());
    queue.acknowledge("bye");
    assert_eq!(sent(&mut queue, now), ["new"]);
}

#[test]
fn a_window_of_stuck_objects_lets_others_pass_but_not_without_bound() {
    let (mut queue, now) = queue();
    (0..1000).for_each(|n| offer(&mut queue, n, 1));
    let mut stuck = Vec::new();
    loop {
        let ids = sent(&mut queue, now);
        if ids.is_empty() {
            break;
        }
        assert!(ids.len() <= Window::UPSTREAM.objects);
        ids.iter().for_each(|id| assert!(queue.refused(id, now).is_some()));
        stuck.extend(ids);
    }
    assert_eq!(stuck.len(), 4 * Window::UPSTREAM.objects);
    queue.acknowledge(&stuck[0]);
    assert_eq!(sent(&mut queue, now).len(), 1);
}

#[test]
fn bytes_of_stuck_objects_are_bounded() {
    let (mut queue, now) = queue();
    let large = Content::text(&"x".repeat(1 << 20));
    let mut flying = 0;
    for n in 0..20 {
        queue.offer(&n.to_string(), 1, Message { content: large.clone(), ..pod(n, 1) });
        for id in sent(&mut queue, now) {
            flying += 1;
            assert!(queue.refused(&id, now).is_some());
        }
    }
    assert_eq!(flying, MAX_WAITING_BYTES >> 20);
}

#[test]
fn a_newer_version_of_what_was_refused_goes_at_once() {
    let (mut queue, now) = queue();
    offer(&mut queue, 1, 1);
    assert_eq!(sent(&mut queue, now), ["1-1"]);
    assert!(queue.refused("1-1", now).is_some());
    assert!(sent(&mut queue, now).is_empty());
    offer(&mut queue, 1, 2);
    assert_eq!(sent(&mut queue, now), ["1-2"]);
    offer(&mut queue, 1, 3);
    assert!(sent(&mut queue, now).is_empty(), "nobody has refused the second");
    assert!(queue.acknowledge("1-2").is_some());
    assert_eq!(sent(&mut queue, now), ["1-3"]);
}

#[test]
fn a_namesake_waits_for_the_deletion() {
    let (mut queue, now) = queue();
    let path = "default/pod/web";
    queue.offer("old", 1, message("old", "update", path));
    assert_eq!(sent(&mut queue, now), ["old"]);
    queue.acknowledge("old");
    queue.offer("old", 9, message("bye", "delete", path));
    queue.offer("new", 10, message("new-1", "insert", path));
    queue.offer("new", 11, message("new-2", "update", path));
    assert_eq!(sent(&mut queue, now), ["bye"]);
    queue.acknowledge("bye");
    assert_eq!(sent(&mut queue, now), ["new-2"]);
}

#[test]
fn a_namesake_on_its_way_is_sent_again_behind_a_late_deletion() {
    let (mut queue, now) = queue();
    let path = "default/pod/web";
    queue.offer("new", 10, message("new", "insert", path));
    assert_eq!(sent(&mut queue, now), ["new"]);
    queue.offer("old", u64::MAX, message("bye", "delete", path));
    queue.acknowledge("new");
    assert_eq!(sent(&mut queue, now), ["bye"]);
    queue.acknowledge("bye");
    assert_eq!(sent(&mut queue, now), ["new"]);
}

#[test]
fn what_was_deleted_does_not_come_back() {
    let (mut queue, now) = queue();
    let path = "default/pod/web";
    queue.offer("old", 9, message("bye", "delete", path));
    assert_eq!(sent(&mut queue, now), ["bye"]);
    assert!(queue.acknowledge("bye").is_some() && queue.acknowledge("bye").is_none());
    queue.offer("old", 8, message("late", "update", path));
    queue.offer("old", u64::MAX, message("again", "delete", path));
    assert!(sent(&mut queue, now).is_empty());
    for n in 0..=MAX_DELETED {
        queue.offer(&n.to_string(), 9, message(&format!("bye-{n}"), "delete", path));
        sent(&mut queue, now);
        queue.acknowledge(&format!("bye-{n}"));
    }
    assert_eq!((queue.offered.len(), queue.deleting.len(), queue.open.len()), (MAX_DELETED, 0, 0));
}

#[test]
fn what_left_the_node_may_come_back_and_leave_again() {
    let (mut queue, now) = queue();
    let withdraw = |queue: &mut NodeQueue, version: u64, id: &str| {
        queue.withdraw("1", version, message(id, "delete", "default/pod/1"));
    };
    offer(&mut queue, 1, 1);
    assert_eq!(sent(&mut queue, now), ["1-1"]);
    queue.acknowledge("1-1");
    withdraw(&mut queue, 2, "gone-2");
    assert_eq!(sent(&mut queue, now), ["gone-2"]);
    offer(&mut queue, 1, 1);
    offer(&mut queue, 1, 3);
    assert!(sent(&mut queue, now).is_empty(), "the deletion is in flight");
    withdraw(&mut queue, 2, "late");
    withdraw(&mut queue, 4, "gone-4");
    assert!(sent(&mut queue, now).is_empty() && queue.pending() == 2);
    queue.acknowledge("gone-2");
    assert_eq!(sent(&mut queue, now), ["gone-4"]);
    offer(&mut queue, 1, 5);
    queue.acknowledge("gone-4");
    assert_eq!(sent(&mut queue, now), ["1-5"]);
    queue.acknowledge("1-5");
    // What the node does not use any more goes, and comes back in the same version.
    withdraw(&mut queue, 5, "unused");
    assert_eq!(sent(&mut queue, now), ["unused"]);
    queue.acknowledge("unused");
    offer(&mut queue, 1, 5);
    assert_eq!(sent(&mut queue, now), ["1-5"]);
    queue.acknowledge("1-5");
    queue.offer("1", u64::MAX, message("end", "delete", "default/pod/1"));
    withdraw(&mut queue, 9, "later");
    assert_eq!(sent(&mut queue, now), ["end"], "deleted for good");
    queue.acknowledge("end");
    assert_eq!(queue.pending(), 0);
}

#[test]
fn a_model_goes_before_its_device_though_the_device_waited_longer() {
    let (mut queue, now) = queue();
    queue.offer("d", 1, message("device", "insert", "default/device/d"));
    queue.offer("m", 2, message("model", "insert", "default/devicemodel/m"));
    queue.offer("d", 3, message("device again", "update", "default/device/d"));
    assert_eq!(sent(&mut queue, now), ["model", "device again"]);
}
