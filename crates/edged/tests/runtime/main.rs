//! The runtime half of edged against a runtime in memory and against real containerd.

mod containers;
mod node;
mod real;
mod stub;
