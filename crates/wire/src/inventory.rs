//! What a node has (feature `inventory-1`): the cloud compares it with the cluster instead of trusting its own notes, so that a lost,
//! an old or a foreign database comes right.
//!
//! The edge sends a digest with each upgrade. When it differs from what the cloud has noted, the cloud asks (`query` of
//! `inventory`) and gets the list. When the node has acknowledged all that it lacked, it is told so (`synced`).
//! A node that has not even its Node, which stands in no list, sends an empty digest: its database is new.

use serde::{Deserialize, Serialize};

use crate::kind;

/// The resource of the question and its answer.
pub const RESOURCE: &str = "inventory";
/// Types of the objects that stand in it: what the cloud pushes and deletes in its own time. The Node itself does not.
pub const KINDS: [&str; 5] = [kind::POD, kind::CONFIG_MAP, kind::SECRET, kind::DEVICE, kind::DEVICE_MODEL];
/// The operation of the message that ends catching up.
pub const SYNCED: &str = "synced";
/// Objects of one node at most; what a peer lists beyond them is cut.
pub const MAX_OBJECTS: usize = 20_000;

/// One object that a node has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held(
    /// Its uid.
    pub String,
    /// Its path, `namespace/type/name`.
    pub String,
    /// Its resource version.
    pub u64,
);

/// A digest over uids and versions, whatever their order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Digest(u64);

impl Digest {
    /// Adds an object.
    pub fn add(&mut self, uid: &str, version: u64) {
        // FNV-1a (64 bits): the same on every machine.
        let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        let hash = uid.as_bytes().iter().chain(&version.to_be_bytes()).fold(0xcbf2_9ce4_8422_2325, step);
        self.0 = self.0.wrapping_add(hash);
    }

    /// As in the header.
    pub fn to_text(self) -> String {
        format!("{:016x}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_does_not_matter_and_everything_else_does() {
        let of = |objects: &[(&str, u64)]| {
            let mut digest = Digest::default();
            objects.iter().for_each(|(uid, version)| digest.add(uid, *version));
            digest.to_text()
        };
        assert_eq!(of(&[("a", 1), ("b", 2)]), of(&[("b", 2), ("a", 1)]));
        let others = [of(&[]), of(&[("a", 1)]), of(&[("a", 2), ("b", 2)]), of(&[("a", 2), ("b", 1)])];
        assert!(others.iter().all(|other| *other != of(&[("a", 1), ("b", 2)])));
    }
}
