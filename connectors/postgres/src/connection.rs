//! One session with the server, for SQL and for replication.
//!
//! An own client, so that one place enforces what every session must have: SCRAM only, TLS as the options say, and settings
//! that no `ALTER ROLE` or `ALTER DATABASE` can change. SQL goes by the simple query protocol with quoted literals.

use std::{collections::HashMap, time::Duration};

use bytes::{Buf, BytesMut};
use headwater_connector::{Error, Result, codes as shared};
use postgres_protocol::{
    authentication::sasl::{ChannelBinding, SCRAM_SHA_256, SCRAM_SHA_256_PLUS, ScramSha256},
    message::frontend,
};
use rustls::pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpStream, UnixStream},
    time::timeout,
};
use tokio_rustls::TlsConnector;

use crate::{
    codes,
    config::{Host, Server, SslMode},
    error::{ServerError, lost, protocol},
    tls,
    wire::Cursor,
};

/// No answer to SQL is longer; the stream has its own limit.
const MAX_MESSAGE: usize = 64 << 20;
/// The server itself gives up on a statement after 30 s; this is for a server that is gone.
const QUERY_TIMEOUT: Duration = Duration::from_secs(45);

/// The byte stream under a session.
pub trait Socket: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Socket for T {}

/// What a session is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// SQL only
    Sql,
    /// SQL and replication commands
    Replication,
}

/// Settings that the server reports by itself, with the value that each must have: what decides how cells are written.
const REPORTED: [(&str, &str); 4] =
    [("client_encoding", "UTF8"), ("DateStyle", "ISO"), ("IntervalStyle", "postgres"), ("TimeZone", "UTC")];

/// An open session.
pub struct Connection {
    socket: Box<dyn Socket>,
    input: BytesMut,
    parameters: HashMap<String, String>,
    channel_binding: Option<Vec<u8>>,
    encrypted: bool,
}

/// The rows of an answer; a cell is text or NULL.
pub type Rows = Vec<Vec<Option<String>>>;

impl Connection {
    /// Connects, logs in, and makes sure of the session's settings.
    pub async fn open(server: &Server, purpose: Purpose) -> Result<Self> {
        let opening = Box::pin(async {
            let mut connection = Self::connect(server).await?;
            connection.log_in(server, purpose).await?;
            connection.verify_settings().await?;
            Ok(connection)
        });
        match timeout(server.connect_timeout, opening).await {
            Ok(result) => result.map_err(|error: Error| error.at("server", server.endpoint())),
            Err(_) => Err(unreachable("the server did not answer in time").at("server", server.endpoint())),
        }
    }

    async fn connect(server: &Server) -> Result<Self> {
        let failed = |error: std::io::Error| unreachable("cannot connect").caused_by(error);
        let socket: Box<dyn Socket> = match &server.host {
            Host::Unix(path) => {
                Box::new(UnixStream::connect(path.join(format!(".s.PGSQL.{}", server.port))).await.map_err(failed)?)
            }
            Host::Tcp(host) => {
                let stream = TcpStream::connect((host.as_str(), server.port)).await.map_err(failed)?;
                stream.set_nodelay(true).map_err(failed)?;
                if server.ssl_mode != SslMode::Disable {
                    return Self::encrypt(server, host, stream).await;
                }
                Box::new(stream)
            }
        };
        Ok(Self { socket, input: BytesMut::new(), parameters: HashMap::new(), channel_binding: None, encrypted: false })
    }

    async fn encrypt(server: &Server, host: &str, mut stream: TcpStream) -> Result<Self> {
        let mut request = BytesMut::new();
        frontend::ssl_request(&mut request);
        stream.write_all(&request).await.map_err(broken)?;
        // One byte and no more is read before the handshake, so that nothing sent in the clear can pass for an answer.
        if stream.read_u8().await.map_err(broken)? != b'S' {
            return Err(Error::new(&codes::TLS, "the server offers no TLS")
                .hint("Turn ssl on at the server, or set sslmode=disable in the url if the network is trusted."));
        }
        let name = ServerName::try_from(host.to_owned())
            .map_err(|_| Error::new(&codes::TLS, "the host name cannot stand in a certificate"))?;
        let connector = TlsConnector::from(tls::client_config(server)?);
        let stream = connector.connect(name, stream).await.map_err(|error| {
            Error::new(&codes::TLS, "the TLS handshake failed").caused_by(error).hint(
                "Name the authority that signed the server's certificate with sslrootcert in the url, and use a host name that is in it.",
            )
        })?;
        let certificate = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
        let channel_binding = certificate.and_then(|certificate| tls::end_point(certificate));
        let socket = Box::new(stream);
        Ok(Self { socket, input: BytesMut::new(), parameters: HashMap::new(), channel_binding, encrypted: true })
    }

    async fn log_in(&mut self, server: &Server, purpose: Purpose) -> Result<()> {
        let timeout_ms = if purpose == Purpose::Sql { "30000" } else { "0" };
        // The server takes these as if the client had SET them: they stand above every default of role and database.
        let mut parameters = vec![
            ("user", server.user.as_str()),
            ("database", server.database.as_str()),
            ("application_name", server.application_name.as_str()),
            ("client_encoding", "UTF8"),
            ("DateStyle", "ISO"),
            ("IntervalStyle", "postgres"),
            ("TimeZone", "UTC"),
            ("bytea_output", "hex"),
            ("extra_float_digits", "1"),
            ("lc_monetary", "C"),
            ("xmlbinary", "base64"),
            ("search_path", "pg_catalog"),
            ("standard_conforming_strings", "on"),
            ("default_transaction_read_only", "off"),
            ("statement_timeout", timeout_ms),
            ("lock_timeout", timeout_ms),
        ];
        if purpose == Purpose::Replication {
            parameters.push(("replication", "database"));
        }
        let mut out = BytesMut::new();
        frontend::startup_message(parameters, &mut out).map_err(|_| protocol("a connection parameter holds a zero byte"))?;
        self.send(&out).await?;
        self.authenticate(server).await?;
        loop {
            let (tag, body) = self.receive().await?;
            match tag {
                b'Z' => return Ok(()),
                b'K' | b'N' | b'v' => {}
                b'S' => self.note_parameter(&body)?,
                b'E' => return Err(server_error(&body)?.into_error()),
                _ => return Err(protocol("an unexpected message came during the login")),
            }
        }
    }

    async fn authenticate(&mut self, server: &Server) -> Result<()> {
        let mut scram: Option<ScramSha256> = None;
        let mut proven = false;
        loop {
            let (tag, body) = self.receive().await?;
            match tag {
                b'E' => return Err(server_error(&body)?.into_error()),
                b'N' | b'v' => continue,
                b'R' => {}
                _ => return Err(protocol("an unexpected message came during the login")),
            }
            let mut cursor = Cursor::new(&body);
            let kind = cursor.u32().map_err(|_| protocol("a login message is torn"))?;
            match (kind, scram.as_mut()) {
                // Login without a password (trust, peer, certificate) is the server's choice; after SCRAM began, the server
                // must have proven that it knows the password too.
                (0, None) => return Ok(()),
                (0, Some(_)) if proven => return Ok(()),
                (10, None) => scram = Some(self.begin_scram(server, cursor.rest()).await?),
                (11, Some(scram)) => {
                    bounded_iterations(cursor.rest())?;
                    scram.update(cursor.rest()).map_err(scram_failed)?;
                    let mut out = BytesMut::new();
                    frontend::sasl_response(scram.message(), &mut out).map_err(broken)?;
                    self.send(&out).await?;
                }
                (12, Some(scram)) => {
                    scram.finish(cursor.rest()).map_err(scram_failed)?;
                    proven = true;
                }
                (3, _) => return Err(unsafe_login("the server asks for a cleartext password")),
                (5, _) => return Err(unsafe_login("the server asks for an md5 password")),
                (0 | 10..=12, _) => return Err(protocol("the login messages are out of order")),
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
        let (mechanism, binding) = match self.channel_binding.take() {
            Some(hash) if offers(SCRAM_SHA_256_PLUS) => (SCRAM_SHA_256_PLUS, ChannelBinding::tls_server_end_point(hash)),
            Some(_) => (SCRAM_SHA_256, ChannelBinding::unrequested()),
            None => (SCRAM_SHA_256, ChannelBinding::unsupported()),
        };
        if !offers(mechanism) {
            return Err(unsafe_login("the server offers no SCRAM-SHA-256"));
        }
        let scram = ScramSha256::new(password.as_bytes(), binding);
        let mut out = BytesMut::new();
        frontend::sasl_initial_response(mechanism, scram.message(), &mut out).map_err(broken)?;
        self.send(&out).await?;
        Ok(scram)
    }

    /// What the server did not report is asked for. A pooler that swallows the settings is found out here, before a
    /// wrongly written value is published.
    async fn verify_settings(&mut self) -> Result<()> {
        for (name, wanted) in REPORTED {
            let found = self.parameters.get(name).map(String::as_str).unwrap_or_default();
            if found.split(',').next() != Some(wanted) {
                return Err(unpinned(name));
            }
        }
        let rows = self
            .query("SELECT pg_catalog.current_setting('bytea_output'), pg_catalog.current_setting('extra_float_digits')")
            .await?;
        let fine = rows == [[Some("hex".to_owned()), Some("1".to_owned())]];
        if fine { Ok(()) } else { Err(unpinned("bytea_output or extra_float_digits")) }
    }

    /// A setting that the server reports, for example `server_version`.
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.get(name).map(String::as_str)
    }

    /// The major version.
    pub fn major_version(&self) -> Result<u32> {
        let text = self.parameter("server_version").unwrap_or_default();
        let digits = text.split(|c: char| !c.is_ascii_digit()).next().unwrap_or_default();
        digits.parse().map_err(|_| protocol("the server reports no version"))
    }

    /// Whether TLS is on.
    pub fn is_encrypted(&self) -> bool {
        self.encrypted
    }

    /// Runs one statement or replication command and returns its rows.
    pub async fn query(&mut self, sql: &str) -> Result<Rows> {
        self.try_query(sql).await?.map_err(ServerError::into_error)
    }

    /// Like [`query`](Self::query), with the server's refusal for the caller to match on.
    pub async fn try_query(&mut self, sql: &str) -> Result<Result<Rows, ServerError>> {
        self.query_within(sql, QUERY_TIMEOUT).await
    }

    /// Like [`try_query`](Self::try_query), for commands that may wait long.
    pub async fn query_within(&mut self, sql: &str, patience: Duration) -> Result<Result<Rows, ServerError>> {
        timeout(patience, self.run(sql)).await.map_err(|_| lost("the server did not answer a statement in time"))?
    }

    async fn run(&mut self, sql: &str) -> Result<Result<Rows, ServerError>> {
        self.send_query(sql).await?;
        let mut rows = Vec::new();
        let mut refused = None;
        loop {
            let (tag, body) = self.receive().await?;
            match tag {
                b'D' => rows.push(data_row(&body)?),
                b'E' => refused = Some(server_error(&body)?),
                b'S' => self.note_parameter(&body)?,
                b'Z' => return Ok(refused.map_or(Ok(rows), Err)),
                b'T' | b'C' | b'N' | b'I' => {}
                _ => return Err(protocol("an unexpected message came in answer to a statement")),
            }
            // A server that ends the session sends no ReadyForQuery behind the error.
            if let Some(error) = &refused
                && error.state.starts_with("57P")
            {
                return Ok(Err(error.clone()));
            }
        }
    }

    /// Sends a replication command that answers with a two-way copy; then the socket belongs to the stream.
    pub async fn start_copy(&mut self, command: &str) -> Result<Result<(), ServerError>> {
        self.send_query(command).await?;
        loop {
            let (tag, body) = self.receive().await?;
            match tag {
                b'W' => return Ok(Ok(())),
                b'E' => return Ok(Err(server_error(&body)?)),
                b'N' | b'S' => {}
                _ => return Err(protocol("an unexpected message came in answer to START_REPLICATION")),
            }
        }
    }

    /// After a failed [`start_copy`](Self::start_copy): waits until the session takes commands again.
    pub async fn recover(&mut self) -> Result<()> {
        while self.receive().await?.0 != b'Z' {}
        Ok(())
    }

    /// The socket and what was read ahead of it.
    pub fn into_parts(self) -> (Box<dyn Socket>, BytesMut) {
        (self.socket, self.input)
    }

    /// Says goodbye. An error here is of no interest: the server ends the session either way.
    pub async fn close(mut self) {
        let mut out = BytesMut::new();
        frontend::terminate(&mut out);
        let _ = timeout(Duration::from_secs(1), self.send(&out)).await;
    }

    async fn send_query(&mut self, sql: &str) -> Result<()> {
        let mut out = BytesMut::new();
        frontend::query(sql, &mut out).map_err(|_| protocol("a statement holds a zero byte"))?;
        self.send(&out).await
    }

    async fn send(&mut self, bytes: &[u8]) -> Result<()> {
        self.socket.write_all(bytes).await.map_err(broken)?;
        self.socket.flush().await.map_err(broken)
    }

    /// The next message: its tag and its body.
    async fn receive(&mut self) -> Result<(u8, BytesMut)> {
        loop {
            if let Some(header) = self.input.get(..5) {
                let len = Cursor::new(&header[1..]).u32().unwrap_or_default() as usize;
                if !(4..=MAX_MESSAGE).contains(&len) {
                    return Err(protocol("a message has an impossible length"));
                }
                if self.input.len() > len {
                    let mut message = self.input.split_to(len + 1);
                    let tag = message[0];
                    message.advance(5);
                    return Ok((tag, message));
                }
            }
            self.input.reserve(8192);
            if self.socket.read_buf(&mut self.input).await.map_err(broken)? == 0 {
                return Err(lost("the server closed the connection"));
            }
        }
    }

    fn note_parameter(&mut self, body: &[u8]) -> Result<()> {
        let mut cursor = Cursor::new(body);
        let (Ok(name), Ok(value)) = (cursor.text(), cursor.text()) else { return Err(protocol("a setting's report is torn")) };
        self.parameters.insert(name.to_owned(), value.to_owned());
        Ok(())
    }
}

/// Quotes an identifier. The only place that does.
pub fn ident(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Quotes a literal; `standard_conforming_strings` is pinned, so a backslash is an ordinary character.
pub fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

fn server_error(body: &[u8]) -> Result<ServerError> {
    ServerError::parse(body).map_err(|_| protocol("an error message is torn"))
}

fn data_row(body: &[u8]) -> Result<Vec<Option<String>>> {
    let torn = |_| protocol("a result row is torn");
    let mut cursor = Cursor::new(body);
    let mut row = Vec::new();
    for _ in 0..cursor.u16().map_err(torn)? {
        let len = cursor.i32().map_err(torn)?;
        row.push(match usize::try_from(len) {
            Err(_) => None,
            Ok(len) => Some(String::from_utf8_lossy(cursor.take(len).map_err(torn)?).into_owned()),
        });
    }
    Ok(row)
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

fn unreachable(what: &str) -> Error {
    Error::new(&shared::UNREACHABLE, what).hint("Check host and port in the url, and that the server runs.")
}

fn broken(error: std::io::Error) -> Error {
    lost("the connection to the server broke").caused_by(error)
}

fn scram_failed(_: std::io::Error) -> Error {
    Error::new(&codes::LOGIN_REFUSED, "the server could not prove that it knows the password")
        .hint("Check the password, and that nothing stands between headwater and the server.")
}

fn unsafe_login(what: &str) -> Error {
    Error::new(&codes::UNSAFE_LOGIN, what).hint(
        "Set password_encryption = 'scram-sha-256', set the role's password again, and write scram-sha-256 into pg_hba.conf.",
    )
}

fn unpinned(name: &str) -> Error {
    Error::new(&codes::REFUSED, format!("the session's {name} is not what it was set to"))
        .hint("Connect to the server itself: a connection pooler cannot carry these sessions.")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quoting_doubles_quotes() {
        assert_eq!(ident("a\"; DROP--"), "\"a\"\"; DROP--\"");
        assert_eq!(literal("it's \\"), "'it''s \\'");
    }

    #[test]
    fn torn_rows_are_refused() {
        assert_eq!(data_row(b"\0\x02\0\0\0\x01a\xff\xff\xff\xff").unwrap(), [Some("a".to_owned()), None]);
        assert!(data_row(b"\0\x02\0\0\0\x09a").is_err());
    }

    #[test]
    fn absurd_hash_rounds_are_refused() {
        assert!(bounded_iterations(b"r=x,s=y,i=4096").is_ok());
        assert!(bounded_iterations(b"r=x,s=y,i=2000000000").is_err());
    }
}
