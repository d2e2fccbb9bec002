//! cloudcore with the embedded Kubernetes in one process, against a stand-in for a Go edge.

mod bad_input;
mod cloud;
mod collect;
mod conversion;
mod delivery;
mod deploy;
mod device_reports;
mod devices;
mod edge;
mod fleet;
mod golden;
mod grpc;
mod on_demand;
mod receivers;
mod registration;
mod resumed;
mod streams;
mod unix_socket;
mod volumes;
mod watching;
