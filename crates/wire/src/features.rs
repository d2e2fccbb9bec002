//! What two ends of ours can do beyond KubeEdge v1.23, agreed on in the upgrade of the message channel. The edge announces, the cloud
//! answers with what it takes; without the header both keep to upstream's behaviour.

use std::fmt;

/// The header of the upgrade request and of its answer: names, separated by commas.
pub const FEATURES: &str = "x-ferroedge-features";
/// The header of the upgrade request with the digest of the node's [inventory](crate::inventory).
pub const INVENTORY: &str = "x-ferroedge-inventory";

/// A set of features.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features {
    /// `batch-1`: binary frames hold several messages, compressed ([`crate::batch`]).
    pub batch: bool,
    /// `acks-1`: each message that has no answer is acknowledged, many at once ([`crate::acks`]), and the window is wide.
    pub acks: bool,
    /// `inventory-1`: the cloud may ask which objects in which versions the node has, and says when it has sent all that the node
    /// lacked.
    pub inventory: bool,
    /// `tunnel-1`: the node opens its stream tunnel when the cloud asks for it, and not before ([`crate::on_demand`]).
    pub tunnel: bool,
}

impl Features {
    /// All that this version knows.
    pub const ALL: Self = Self { batch: true, acks: true, inventory: true, tunnel: true };

    /// Reads a header's value; unknown names are of another version and left out.
    pub fn parse(text: &str) -> Self {
        let mut found = Self::default();
        for name in text.split(',').map(str::trim) {
            match name {
                "batch-1" => found.batch = true,
                "acks-1" => found.acks = true,
                "inventory-1" => found.inventory = true,
                "tunnel-1" => found.tunnel = true,
                _ => {}
            }
        }
        found
    }

    /// What both sets have.
    pub fn both(self, other: Self) -> Self {
        Self {
            batch: self.batch && other.batch,
            acks: self.acks && other.acks,
            inventory: self.inventory && other.inventory,
            tunnel: self.tunnel && other.tunnel,
        }
    }
}

impl fmt::Display for Features {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = [
            (self.batch, "batch-1"),
            (self.acks, "acks-1"),
            (self.inventory, "inventory-1"),
            (self.tunnel, "tunnel-1"),
        ];
        let names: Vec<&str> = names.into_iter().filter_map(|(has, name)| has.then_some(name)).collect();
        f.write_str(&names.join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_both_know_is_agreed_on() {
        assert_eq!(Features::parse(&Features::ALL.to_string()), Features::ALL);
        assert_eq!(Features::parse(""), Features::default());
        let some = Features::parse("zstd-7, acks-1 ,batch-2");
        assert_eq!(some, Features { acks: true, ..Features::default() });
        assert_eq!(Features::ALL.both(some), some);
        assert_eq!(some.to_string(), "acks-1");
    }
}
