//! A plain SQL session, for the demo that trades in a shop of its own.

use headwater_connector::{Error, Result, SourceContext};

use crate::{
    codes::BAD_OPTION,
    config,
    connection::{Connection, Purpose, Rows},
};

/// An open session, with the same settings, TLS and authentication as the connector's own.
pub struct Session(Connection);

impl Session {
    /// Connects to the URL that a connector's `url` option would take.
    pub async fn open(url: &str) -> Result<Self> {
        let context = SourceContext { connector: "session".into(), prefix: "headwater".into(), keys: Vec::new() };
        let mut faults = Vec::new();
        let server = config::server(&context, url, None, &mut faults);
        if let Some(fault) = faults.into_iter().next() {
            return Err(fault.error.at("option", "url"));
        }
        let server = server.ok_or_else(|| Error::new(&BAD_OPTION, "the URL is not usable").at("option", "url"))?;
        Connection::open(&server, Purpose::Sql).await.map(Self)
    }

    /// Runs one or more statements; rows of all of them, a cell is text or NULL.
    pub async fn query(&mut self, sql: &str) -> Result<Rows> {
        self.0.query(sql).await
    }
}
