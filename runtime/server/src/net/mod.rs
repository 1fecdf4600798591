//! What the listeners of the data plane share: accepting, TLS, and the table of
//! open connections with its timeouts and its way to end them.

mod accept;
mod table;
mod tls;
mod trust;
mod watched;

pub(crate) use accept::{Acceptor, Listening, Transport};
pub(crate) use table::{Activity, RequestUnderWay, Table, Timeouts};
pub(crate) use tls::Tls;
pub(crate) use trust::{agent_config, client_config, roots};
pub(crate) use watched::{Watched, drive};
