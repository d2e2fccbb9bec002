//! `keadm debug`: where a path ends that should go on.

pub mod tunnel;
