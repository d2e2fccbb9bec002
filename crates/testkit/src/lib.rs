//! What the tests of several crates share: stand-ins for the programs and machines around ours.

pub mod fake_cri;
