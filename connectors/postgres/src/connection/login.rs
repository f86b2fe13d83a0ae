//! The login: settings, who proves what to whom, and what the session turned out to be.

use bytes::BytesMut;
use headwater_connector::{Error, Result};
use postgres_protocol::{
    authentication::sasl::{ChannelBinding, SCRAM_SHA_256, SCRAM_SHA_256_PLUS, ScramSha256},
    message::frontend,
};

use super::{Connection, MAX_ANSWER, Purpose, broken, ident, not_postgres, server_error};
use crate::{
    codes,
    error::{ServerError, protocol},
    server::{Binding, Server},
    wire::Cursor,
};

/// Sent as if the client had SET them: they stand above every default of server, role and database. A pooler may swallow them,
/// so each is looked at before the session is used; the third is how the server shows it.
const PINNED: [(&str, &str, &str); 11] = [
    ("client_encoding", "UTF8", "UTF8"),
    ("DateStyle", "ISO", "ISO"),
    ("IntervalStyle", "postgres", "postgres"),
    ("TimeZone", "UTC", "UTC"),
    ("bytea_output", "hex", "hex"),
    ("extra_float_digits", "1", "1"),
    ("lc_monetary", "C", "C"),
    ("xmlbinary", "base64", "base64"),
    ("search_path", "pg_catalog", "pg_catalog"),
    ("standard_conforming_strings", "on", "on"),
    ("default_transaction_read_only", "off", "off"),
];

/// `PINNED` with the timeouts of the session's purpose: a replication command may take as long as it takes.
fn pinned(purpose: Purpose) -> Vec<(&'static str, &'static str, &'static str)> {
    let (sent, shown) = if purpose == Purpose::Sql { ("30000", "30s") } else { ("0", "0") };
    let timeouts = ["statement_timeout", "lock_timeout"].map(|name| (name, sent, shown));
    PINNED.into_iter().chain(timeouts).collect()
}

impl Connection {
    pub(super) async fn log_in(&mut self, server: &Server, purpose: Purpose) -> Result<()> {
        let mut parameters = vec![
            ("user", server.user.as_str()),
            ("database", server.database.as_str()),
            ("application_name", server.application_name.as_str()),
        ];
        parameters.extend(pinned(purpose).into_iter().map(|(name, sent, _)| (name, sent)));
        if purpose == Purpose::Replication {
            parameters.push(("replication", "database"));
        }
        let mut out = BytesMut::new();
        frontend::startup_message(parameters, &mut out).map_err(|_| protocol("a connection parameter holds a zero byte"))?;
        self.say(&out).await?;
        self.authenticate(server, purpose).await?;
        loop {
            let (tag, body) = self.receive().await?;
            match tag {
                b'Z' => break,
                b'K' => {
                    self.facts.key_pid = Cursor::new(&body).i32().map_err(|_| protocol("a login message is torn"))?;
                }
                b'N' | b'v' => {}
                b'S' => self.note_parameter(&body)?,
                b'E' => return Err(refused(server_error(&body)?, server, purpose)),
                _ => return Err(protocol("an unexpected message came during the login")),
            }
        }
        self.limit = MAX_ANSWER;
        Ok(())
    }

    /// Sends. A server that refuses the client's certificate closes while we write; what it said about it is still there to read.
    async fn say(&mut self, bytes: &[u8]) -> Result<()> {
        let Err(error) = self.send(bytes).await else { return Ok(()) };
        match self.receive().await {
            Err(told) if told.code().id == codes::CLIENT_CERTIFICATE.id => Err(told),
            Ok((b'E', body)) => Err(server_error(&body)?.into_error()),
            _ => Err(error),
        }
    }

    async fn authenticate(&mut self, server: &Server, purpose: Purpose) -> Result<()> {
        let mut scram: Option<ScramSha256> = None;
        let mut proven = false;
        loop {
            let (tag, body) = self.receive().await?;
            match tag {
                b'E' => return Err(refused(server_error(&body)?, server, purpose)),
                b'N' | b'v' => continue,
                b'R' => {}
                _ => return Err(not_postgres("the first message is of no login")),
            }
            let mut cursor = Cursor::new(&body);
            let kind = cursor.u32().map_err(|_| protocol("a login message is torn"))?;
            match (kind, scram.as_mut()) {
                (0, Some(_)) if proven => return Ok(()),
                (0, Some(_)) => return Err(scram_failed()),
                // Without a password to prove (trust, peer, certificate) the login is the server's choice.
                (0, None) if server.password.is_none() => return Ok(()),
                (0, None) => {
                    return Err(unproven("the server lets us in without asking for the password").hint(
                        "Take `password` out of the config, or write scram-sha-256 in place of the method in pg_hba.conf.",
                    ));
                }
                (10, None) => scram = Some(self.begin_scram(server, cursor.rest()).await?),
                (11, Some(scram)) => {
                    bounded_iterations(cursor.rest())?;
                    scram.update(cursor.rest()).map_err(|_| scram_failed())?;
                    let mut out = BytesMut::new();
                    frontend::sasl_response(scram.message(), &mut out).map_err(broken)?;
                    self.send(&out).await?;
                }
                (12, Some(scram)) => {
                    scram.finish(cursor.rest()).map_err(|_| scram_failed())?;
                    proven = true;
                }
                (3, _) => return Err(unsafe_login("the server asks for a cleartext password")),
                (5, _) => return Err(unsafe_login("the server asks for an md5 password")),
                (10..=12, _) => return Err(protocol("the login messages are out of order")),
                _ => return Err(unsafe_login("the server asks for a login method that is not supported")),
            }
        }
    }

    async fn begin_scram(&mut self, server: &Server, mechanisms: &[u8]) -> Result<ScramSha256> {
        let offers = |name: &str| mechanisms.split(|byte| *byte == 0).any(|offered| offered == name.as_bytes());
        let Some(password) = &server.password else {
            return Err(Error::new(&codes::LOGIN_REFUSED, "the server asks for a password and none is configured")
                .hint("Set `password: { env: NAME }` or `password: { file: PATH }`."));
        };
        let password = password.reveal()?;
        // The binding proves that the TLS session ends at the server that knows the password, not at one in between.
        let (mechanism, binding) = match (self.end_point.take(), server.binding) {
            _ if !self.encrypted => (SCRAM_SHA_256, ChannelBinding::unsupported()),
            (_, Binding::Disable) => (SCRAM_SHA_256, ChannelBinding::unsupported()),
            (Some(hash), _) if offers(SCRAM_SHA_256_PLUS) => (SCRAM_SHA_256_PLUS, ChannelBinding::tls_server_end_point(hash)),
            (Some(_), Binding::Prefer) => (SCRAM_SHA_256, ChannelBinding::unrequested()),
            (None, Binding::Prefer) => (SCRAM_SHA_256, ChannelBinding::unsupported()),
            (Some(_), Binding::Require) => return Err(unbound("the server does not offer to bind the login to the TLS channel")),
            (None, Binding::Require) => return Err(unbound("no channel binding exists for the server's kind of certificate")),
        };
        if !offers(mechanism) {
            return Err(unsafe_login("the server offers no SCRAM-SHA-256"));
        }
        self.facts.bound = mechanism == SCRAM_SHA_256_PLUS;
        let scram = ScramSha256::new(password.as_bytes(), binding);
        let mut out = BytesMut::new();
        frontend::sasl_initial_response(mechanism, scram.message(), &mut out).map_err(broken)?;
        self.send(&out).await?;
        Ok(scram)
    }

    /// Looks at every setting, and at who answers. A pooler that swallows the settings is found out here, before a wrongly
    /// written value is published. Names are qualified, because the search path is among what may be swallowed.
    pub(super) async fn verify(&mut self, purpose: Purpose) -> Result<()> {
        let wanted = pinned(purpose);
        let settings: Vec<String> = wanted.iter().map(|(name, ..)| format!("pg_catalog.current_setting('{name}')")).collect();
        let rows = self
            .query(&format!(
                "SELECT pg_catalog.pg_backend_pid(), pg_catalog.pg_postmaster_start_time(), pg_catalog.pg_is_in_recovery(), \
                 (SELECT backend_type FROM pg_catalog.pg_stat_activity WHERE pid = pg_catalog.pg_backend_pid()), {}",
                settings.join(", ")
            ))
            .await?;
        let row = rows.first().map(Vec::as_slice).unwrap_or_default();
        let cell = |at: usize| row.get(at).and_then(Option::as_deref).unwrap_or_default();
        let unpinned = wanted.iter().enumerate().find(|(at, (.., shown))| cell(4 + at).split(',').next() != Some(shown));
        if let Some((_, (name, ..))) = unpinned {
            return Err(pooler(format!("the session's {name} is not what it was set to")));
        }
        if purpose == Purpose::Replication && cell(3) != "walsender" {
            return Err(pooler("the session was asked to be for replication and is not".to_owned()));
        }
        self.facts.sql_pid = cell(0).parse().map_err(|_| protocol("the server does not say which process answers"))?;
        cell(1).clone_into(&mut self.facts.instance);
        self.facts.standby = cell(2) == "t";
        Ok(())
    }

    /// Both sessions of a source must be on one server: what SQL tells is about what the stream sends.
    pub(super) fn require_instance(&self, server: &Server) -> Result<()> {
        match &server.instance {
            Some(wanted) if *wanted != self.facts.instance => {
                Err(Error::new(&codes::OTHER_INSTANCE, "the two sessions ended on different servers, or the server started anew")
                    .hint("Name the servers themselves in the url, not a balancer in front of them, if this comes back."))
            }
            _ => Ok(()),
        }
    }
}

/// A refusal during the login, where more is known than the SQLSTATE.
fn refused(error: ServerError, server: &Server, purpose: Purpose) -> Error {
    match error.state.as_str() {
        // The words of PgBouncer; PostgreSQL takes all that we send.
        "08P01" if error.message.starts_with("unsupported startup parameter") => pooler(error.text()),
        // The server keeps WAL senders apart, and tells them from ordinary sessions here only by the place in its code.
        "53300" if purpose == Purpose::Replication && error.routine == "InitProcess" => Error::new(&codes::BUSY, error.text())
            .hint("Stop an unused replica or connector, or run ALTER SYSTEM SET max_wal_senders = 20; and restart the server."),
        "42501" if purpose == Purpose::Sql => Error::new(&codes::PRIVILEGE, error.text()).hint(format!(
            "Run GRANT CONNECT ON DATABASE {} TO {};",
            ident(&server.database),
            ident(&server.user)
        )),
        _ => error.into_error(),
    }
}

/// A hostile server could ask for billions of hash rounds; real ones ask for 4096.
fn bounded_iterations(challenge: &[u8]) -> Result<()> {
    let text = String::from_utf8_lossy(challenge);
    let rounds = text.split(',').find_map(|part| part.strip_prefix("i=")).and_then(|rounds| rounds.parse::<u32>().ok());
    if rounds.is_some_and(|rounds| rounds > 1_000_000) {
        return Err(unsafe_login("the server asks for an absurd number of hash rounds"));
    }
    Ok(())
}

fn scram_failed() -> Error {
    unproven("the server could not prove that it knows the password")
        .hint("Check the host in the url and the password, and that nothing stands between headwater and the server.")
}

fn unproven(what: &str) -> Error {
    Error::new(&codes::UNPROVEN, what)
}

fn unbound(what: &str) -> Error {
    unproven(what).hint(
        "Connect to the server itself, not to a proxy that ends TLS; set channel_binding=prefer in the url if the proxy is yours.",
    )
}

fn pooler(what: String) -> Error {
    Error::new(&codes::POOLER, what)
        .hint("Put the address of the server itself into the url: a connection pooler cannot carry these sessions.")
}

fn unsafe_login(what: &str) -> Error {
    Error::new(&codes::UNSAFE_LOGIN, what).hint(
        "Set password_encryption = 'scram-sha-256', set the role's password again, and write scram-sha-256 into pg_hba.conf.",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absurd_hash_rounds_are_refused() {
        assert!(bounded_iterations(b"r=x,s=y,i=4096").is_ok());
        assert!(bounded_iterations(b"r=x,s=y,i=2000000000").is_err());
    }
}
