//! Integration tests: the release binary, driven over sockets. One binary, so
//! that it links once; every server is on free ports with a store of its own.

mod bad_input;
mod command_line;
mod credentials;
mod deployments;
mod devices;
mod draining;
mod dtypes;
mod faults;
mod graph_bombs;
mod guests;
mod hooks;
mod operating;
mod policies;
mod protocol;
mod quantize;
mod recovery;
mod replay;
mod rollouts;
mod serving;
mod steering;
mod tracing;
mod traffic;
mod transforms;
mod upstreams;
mod walkthrough;
