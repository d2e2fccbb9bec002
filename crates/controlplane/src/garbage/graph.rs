//! Who belongs to whom: every object that has owners or is being deleted in a way that concerns its dependents.

use std::collections::{BTreeSet, HashMap, HashSet};

use crate::client::Resource;
use crate::object::{Key, Object};

/// The finalizer of an object that waits for its dependents to be gone.
pub const FOREGROUND: &str = "foregroundDeletion";
/// The finalizer of an object whose dependents are to be released first.
pub const ORPHAN: &str = "orphan";

/// One owner reference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnerRef {
    /// `group/version` or `version`.
    pub api_version: String,
    /// Kind.
    pub kind: String,
    /// Name.
    pub name: String,
    /// UID.
    pub uid: String,
    /// The owner's foreground deletion waits for this object.
    pub blocks: bool,
}

/// What the collector knows of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its kind.
    pub resource: Resource,
    /// Where it is.
    pub key: Key,
    /// UID.
    pub uid: String,
    /// Its owners.
    pub owners: Vec<OwnerRef>,
    /// Deletion was asked for.
    pub deleting: bool,
    /// It waits for its dependents.
    pub foreground: bool,
    /// Its dependents are to be released.
    pub orphan: bool,
}

impl Entry {
    /// Reads an object.
    pub fn of(resource: &Resource, object: &Object) -> Self {
        let owners = object.owners().map(|o| OwnerRef {
            api_version: o.api_version.to_owned(),
            kind: o.kind.to_owned(),
            name: o.name.to_owned(),
            uid: o.uid.to_owned(),
            blocks: o.blocks,
        });
        Self {
            resource: resource.clone(),
            key: object.key(),
            uid: object.uid().to_owned(),
            owners: owners.collect(),
            deleting: object.is_deleting(),
            foreground: object.has_finalizer(FOREGROUND),
            orphan: object.has_finalizer(ORPHAN),
        }
    }

    fn matters(&self) -> bool {
        !self.owners.is_empty() || (self.deleting && (self.foreground || self.orphan))
    }
}

/// The graph.
#[derive(Debug, Default)]
pub struct Graph {
    entries: HashMap<String, Entry>,
    dependents: HashMap<String, BTreeSet<String>>,
}

impl Graph {
    /// Takes note of an object; the UIDs to look at.
    pub fn set(&mut self, entry: Entry) -> Vec<String> {
        let uid = entry.uid.clone();
        if self.entries.get(&uid) == Some(&entry) {
            return Vec::new();
        }
        let mut look = vec![uid.clone()];
        let old = self.unlink(&uid);
        // A finished orphaning or a started deletion may be what an owner waits for.
        look.extend(old.into_iter().flat_map(|e| e.owners).map(|o| o.uid));
        if entry.matters() {
            for owner in &entry.owners {
                self.dependents.entry(owner.uid.clone()).or_default().insert(uid.clone());
                look.push(owner.uid.clone());
            }
            self.entries.insert(uid, entry);
        }
        look
    }

    /// Takes note that an object is gone; the UIDs to look at: what it owned and what owned it.
    pub fn remove(&mut self, uid: &str) -> Vec<String> {
        let mut look: Vec<String> = self.dependents.get(uid).into_iter().flatten().cloned().collect();
        look.extend(self.unlink(uid).into_iter().flat_map(|e| e.owners).map(|o| o.uid));
        look
    }

    /// A new list of a kind: objects that are not on it are gone. Everything of the kind is looked at again.
    pub fn relist(&mut self, resource: &Resource, entries: Vec<Entry>) -> Vec<String> {
        let present: HashSet<&str> = entries.iter().map(|e| e.uid.as_str()).collect();
        let gone: Vec<String> = self
            .entries
            .values()
            .filter(|e| e.resource == *resource && !present.contains(e.uid.as_str()))
            .map(|e| e.uid.clone())
            .collect();
        let mut look: Vec<String> = gone.iter().flat_map(|uid| self.remove(uid)).collect();
        for entry in entries {
            look.push(entry.uid.clone());
            look.extend(self.set(entry));
        }
        // An owner without owners of its own is not kept here: whether it still lives is asked anew.
        look.extend(self.dependents.values().flatten().cloned());
        look
    }

    /// One object.
    pub fn get(&self, uid: &str) -> Option<&Entry> {
        self.entries.get(uid)
    }

    /// What an object owns.
    pub fn dependents(&self, uid: &str) -> Vec<Entry> {
        let uids = self.dependents.get(uid);
        uids.into_iter().flatten().filter_map(|uid| self.entries.get(uid)).cloned().collect()
    }

    fn unlink(&mut self, uid: &str) -> Option<Entry> {
        let old = self.entries.remove(uid)?;
        for owner in &old.owners {
            if let Some(set) = self.dependents.get_mut(&owner.uid) {
                set.remove(uid);
                if set.is_empty() {
                    self.dependents.remove(&owner.uid);
                }
            }
        }
        Some(old)
    }
}

/// How an owner stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OwnerState {
    /// It lives.
    Solid,
    /// There is no such object (any more).
    Gone,
    /// It is being deleted and waits for its dependents.
    Waiting,
}

/// What to do with an object that has owners.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing.
    Keep,
    /// Other owners live: take out the references to these UIDs.
    Detach(Vec<String>),
    /// No owner is left: delete it with this propagation policy.
    Delete(&'static str),
}

/// Decides about an object by the state of its owners.
pub fn verdict(entry: &Entry, states: &[OwnerState], has_dependents: bool) -> Verdict {
    if entry.deleting || entry.owners.is_empty() {
        return Verdict::Keep;
    }
    let with = |state: OwnerState| -> Vec<String> {
        entry.owners.iter().zip(states).filter(|(_, s)| **s == state).map(|(o, _)| o.uid.clone()).collect()
    };
    let (solid, gone, waiting) = (with(OwnerState::Solid), with(OwnerState::Gone), with(OwnerState::Waiting));
    if !solid.is_empty() {
        let detach = [gone, waiting].concat();
        return if detach.is_empty() { Verdict::Keep } else { Verdict::Detach(detach) };
    }
    if !waiting.is_empty() && has_dependents {
        return Verdict::Delete("Foreground");
    }
    Verdict::Delete(if entry.orphan {
        "Orphan"
    } else if entry.foreground {
        "Foreground"
    } else {
        "Background"
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(uid: &str, owners: &[&str]) -> Entry {
        let owner = |uid: &&str| OwnerRef {
            api_version: "apps/v1".into(),
            kind: "ReplicaSet".into(),
            name: (*uid).into(),
            uid: (*uid).into(),
            blocks: true,
        };
        Entry {
            resource: Resource::new("", "pods"),
            key: Key::new("default", uid),
            uid: uid.into(),
            owners: owners.iter().map(owner).collect(),
            deleting: false,
            foreground: false,
            orphan: false,
        }
    }

    #[test]
    fn a_gone_owner_makes_us_look_at_what_it_owned() {
        let mut graph = Graph::default();
        graph.set(entry("pod", &["rs"]));
        graph.set(entry("rs", &["deployment"]));
        assert_eq!(graph.remove("rs"), ["pod", "deployment"]);
        assert_eq!(graph.dependents("rs").len(), 1);
        graph.remove("pod");
        assert!(graph.dependents("rs").is_empty() && graph.dependents.is_empty());
    }

    #[test]
    fn a_new_list_finds_what_went_away_unseen() {
        let mut graph = Graph::default();
        graph.set(entry("a", &["x"]));
        graph.set(entry("b", &["x"]));
        let look = graph.relist(&Resource::new("", "pods"), vec![entry("b", &["x"])]);
        assert!(look.contains(&"x".to_owned()) && look.contains(&"b".to_owned()));
        assert_eq!(graph.dependents("x").len(), 1);
    }

    #[test]
    fn verdicts() {
        use OwnerState::{Gone, Solid, Waiting};
        let two = entry("p", &["a", "b"]);
        for (states, dependents, expected) in [
            ([Solid, Solid], false, Verdict::Keep),
            ([Solid, Gone], false, Verdict::Detach(vec!["b".into()])),
            ([Gone, Gone], false, Verdict::Delete("Background")),
            ([Waiting, Gone], false, Verdict::Delete("Background")),
            ([Waiting, Gone], true, Verdict::Delete("Foreground")),
        ] {
            assert_eq!(verdict(&two, &states, dependents), expected, "{states:?}");
        }
        let mut deleting = two;
        deleting.deleting = true;
        assert_eq!(verdict(&deleting, &[Gone, Gone], false), Verdict::Keep);
    }
}
