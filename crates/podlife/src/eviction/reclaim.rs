//! What the node frees by itself before a pod has to go.

use super::{Resource, Signal};

/// What may be removed for a signal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reclaims {
    /// Containers of pods that have ended, with their logs.
    pub containers: bool,
    /// Images that nobody uses.
    pub images: bool,
}

/// What helps against a shortage (Kubernetes): containers leave logs on the node's file system and layers beside the images;
/// images help where they are, which is elsewhere when they have a file system of their own. Nothing but pods holds memory
/// and process ids.
pub fn reclaims(signal: Signal, has_image_fs: bool) -> Reclaims {
    if !matches!(signal.resource(), Resource::EphemeralStorage | Resource::Inodes) {
        return Reclaims::default();
    }
    let nodefs = matches!(signal, Signal::NodeFsAvailable | Signal::NodeFsInodesFree);
    Reclaims { containers: true, images: !(nodefs && has_image_fs) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_helps_against_which_shortage() {
        for (signal, has_image_fs, containers, images) in [
            (Signal::MemoryAvailable, false, false, false),
            (Signal::PidAvailable, true, false, false),
            (Signal::NodeFsAvailable, false, true, true),
            (Signal::NodeFsInodesFree, true, true, false),
            (Signal::ImageFsAvailable, true, true, true),
            (Signal::ImageFsInodesFree, false, true, true),
            (Signal::ContainerFsAvailable, true, true, true),
        ] {
            assert_eq!(reclaims(signal, has_image_fs), Reclaims { containers, images }, "{signal:?} {has_image_fs}");
        }
    }
}
