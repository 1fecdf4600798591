//! Several versions of an endpoint at once, outside of rollouts: versions that
//! were deployed beside the stable one keep a share of the traffic, which a
//! router divides, until they are retired or promoted.
//!
//! Who shares the traffic changes in one transaction, and only then does the
//! traffic follow. Counts and what the router learned are stored every second.

mod change;
mod draft;
mod info;
mod shared;

pub use info::{
    BesideRequest, LiveVersion, RouterChoice, TrafficChange, TrafficStatus, VersionShare,
};
pub(crate) use info::{Side, StoredTraffic};
pub(crate) use shared::Traffic;
