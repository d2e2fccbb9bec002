//! What pods may use of the node, for their admission.

use podlife::requests::Amounts;

use super::Runtime;

impl Runtime {
    /// Amounts that all pods together may request.
    pub fn allocatable(&self) -> Amounts {
        let node = self.resources();
        let amounts = [
            ("pods", i64::from(self.settings.max_pods)),
            ("cpu", node.allocatable_cpu),
            ("memory", node.allocatable_memory),
            ("ephemeral-storage", node.allocatable_storage),
        ];
        let amounts = amounts.into_iter().map(|(name, amount)| (name.to_owned(), amount));
        amounts.chain(self.devices.admissible()).collect()
    }
}

/// Whether the kernel enforces AppArmor profiles.
pub fn has_apparmor() -> bool {
    std::fs::read_to_string("/sys/module/apparmor/parameters/enabled").is_ok_and(|text| text.starts_with('Y'))
}
