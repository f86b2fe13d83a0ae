//! A plain SQL session, for tests and the demo.

use headwater_connector::{Error, Result};

use crate::{
    codes::BAD_OPTION,
    config,
    connection::{Connection, Rows},
    error::ServerError,
};

/// An open session, with the same settings, TLS and authentication as the connector's own.
pub struct Session(Connection);

impl Session {
    /// Connects to the URL that a connector's `url` option would take.
    pub async fn open(url: &str) -> Result<Self> {
        let mut faults = Vec::new();
        let server = config::server(url, None, &mut faults);
        if let Some(fault) = faults.into_iter().next() {
            return Err(fault.error.at("option", "url"));
        }
        let server = server.ok_or_else(|| Error::new(&BAD_OPTION, "the URL is not usable").at("option", "url"))?;
        Connection::open(&server).await.map(Self)
    }

    /// Runs one statement; a cell is text or NULL.
    pub async fn query(&mut self, sql: &str) -> Result<Rows> {
        self.0.try_query(sql).await?.map_err(ServerError::into_error)
    }
}
