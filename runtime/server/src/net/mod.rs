//! What the listeners of the data plane share: accepting, the threads that serve,
//! TLS, and the table of open connections with its timeouts and its way to end
//! them.

mod accept;
mod table;
mod tls;
mod trust;
mod turns;
mod watched;
mod workers;

pub(crate) use accept::{Acceptor, Listening, Transport};
pub(crate) use table::{Activity, Crowded, RequestUnderWay, Table, Timeouts};
pub(crate) use tls::Tls;
pub(crate) use trust::{agent_config, client_config, roots};
pub(crate) use watched::{Watched, drive};
pub(crate) use workers::Workers;
