//! Devices of plugins: which resources are theirs, what a container asks for, and which devices it gets (Kubernetes, device
//! plugins v1beta1).

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::Container;

use crate::requests;

/// Whether a plugin may serve a resource of this name: one with a domain that is not of Kubernetes.
pub fn is_extended(resource: &str) -> bool {
    let Some((domain, name)) = resource.split_once('/') else { return false };
    let part = |text: &str, more: &[u8]| {
        let ends = |byte: Option<u8>| byte.is_some_and(|byte| byte.is_ascii_alphanumeric());
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || more.contains(&byte);
        text.bytes().all(allowed) && ends(text.bytes().next()) && ends(text.bytes().last())
    };
    let of_kubernetes = domain == "kubernetes.io" || domain.ends_with(".kubernetes.io");
    !of_kubernetes
        && !domain.starts_with("requests.")
        && domain.len() <= 253
        && name.len() <= 63
        && part(domain, b"-.")
        && part(name, b"-._")
}

/// How many devices of which resources a container asks for.
pub fn wanted(container: &Container) -> BTreeMap<String, usize> {
    let amounts = requests::container(container).into_iter();
    let devices = amounts.filter(|(name, amount)| *amount > 0 && is_extended(name));
    devices.map(|(name, amount)| (name, usize::try_from(amount).unwrap_or(usize::MAX))).collect()
}

/// What there is of a resource.
pub struct Supply<'a> {
    /// Devices that work.
    pub healthy: &'a BTreeSet<String>,
    /// Devices of any container.
    pub in_use: &'a BTreeSet<String>,
    /// Devices of init containers of the same pod, which have ended when this container starts: they are used first.
    pub reusable: &'a BTreeSet<String>,
}

/// Too few devices are free.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Shortage {
    /// The plugin has none that works, or is gone.
    #[error("no healthy devices present; cannot allocate unhealthy devices {0}")]
    Unhealthy(String),
    /// Not enough are left.
    #[error("requested number of devices unavailable for {resource}. Requested: {requested}, Available: {available}")]
    TooFew {
        /// The resource.
        resource: String,
        /// Devices that were asked for.
        requested: usize,
        /// Devices that are free.
        available: usize,
    },
}

/// Devices among which a plugin may choose: those that must be taken, and all that may be.
#[derive(Debug, PartialEq, Eq)]
pub struct Choice {
    /// Of init containers; they come first.
    pub must: Vec<String>,
    /// All, those of `must` included.
    pub may: Vec<String>,
}

/// Among which devices a container's are.
///
/// # Errors
/// Too few are free.
pub fn choice(resource: &str, requested: usize, supply: &Supply<'_>) -> Result<Choice, Shortage> {
    if supply.healthy.is_empty() {
        return Err(Shortage::Unhealthy(resource.to_owned()));
    }
    let must: Vec<String> = supply.reusable.intersection(supply.healthy).take(requested).cloned().collect();
    let free = supply.healthy.difference(supply.in_use).filter(|id| !must.contains(id));
    let may: Vec<String> = must.iter().chain(free).cloned().collect();
    if may.len() < requested {
        return Err(Shortage::TooFew { resource: resource.to_owned(), requested, available: may.len() });
    }
    Ok(Choice { must, may })
}

impl Choice {
    /// The devices: those that must be taken, then what the plugin prefers as far as it may be had, then any.
    pub fn take(self, requested: usize, preferred: &[String]) -> Vec<String> {
        let mut taken = self.must;
        let wishes = preferred.iter().filter(|id| self.may.contains(id));
        for id in wishes.chain(&self.may) {
            if taken.len() < requested && !taken.contains(id) {
                taken.push(id.clone());
            }
        }
        taken
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn set(ids: &[&str]) -> BTreeSet<String> {
        ids.iter().map(|id| (*id).to_owned()).collect()
    }

    #[test]
    fn names_of_resources() {
        for (name, extended) in [
            ("example.com/dongle", true),
            ("vendor.example.com/gpu_2", true),
            ("cpu", false),
            ("hugepages-2Mi", false),
            ("kubernetes.io/x", false),
            ("a.kubernetes.io/x", false),
            ("requests.example.com/x", false),
            ("example.com/", false),
            ("/x", false),
            ("exa mple.com/x", false),
            ("example.com/../x", false),
        ] {
            assert_eq!(is_extended(name), extended, "{name}");
        }
        let long = format!("example.com/{}", "x".repeat(64));
        assert!(!is_extended(&long));
    }

    #[test]
    fn what_a_container_asks_for() {
        let container: Container = serde_json::from_value(json!({"name": "c", "resources": {"limits":
            {"example.com/a": "2", "example.com/b": "0", "cpu": "1", "example.com/c": "-1"}}}))
        .unwrap();
        assert_eq!(wanted(&container), BTreeMap::from([("example.com/a".to_owned(), 2)]));
    }

    #[test]
    fn devices_of_init_containers_first_then_wishes_then_any() {
        let (healthy, in_use) = (set(&["a", "b", "c", "d"]), set(&["a", "d"]));
        let supply = |reusable| Supply { healthy: &healthy, in_use: &in_use, reusable };
        let (none, own) = (set(&[]), set(&["d", "gone"]));
        let take = |requested, supply: &Supply<'_>, preferred: &[&str]| {
            let preferred: Vec<String> = preferred.iter().map(|id| (*id).to_owned()).collect();
            choice("r", requested, supply).map(|choice| choice.take(requested, &preferred))
        };
        assert_eq!(take(1, &supply(&none), &[]), Ok(vec!["b".to_owned()]));
        assert_eq!(take(1, &supply(&none), &["c"]), Ok(vec!["c".to_owned()]));
        assert_eq!(
            take(1, &supply(&none), &["a", "nonsense"]),
            Ok(vec!["b".to_owned()]),
            "others' devices are not had"
        );
        assert_eq!(take(2, &supply(&own), &["c", "c"]), Ok(vec!["d".to_owned(), "c".to_owned()]));
        assert_eq!(
            take(3, &supply(&none), &[]),
            Err(Shortage::TooFew { resource: "r".into(), requested: 3, available: 2 })
        );
        let ill = Supply { healthy: &none, in_use: &in_use, reusable: &own };
        assert_eq!(take(1, &ill, &[]), Err(Shortage::Unhealthy("r".into())));
    }
}
