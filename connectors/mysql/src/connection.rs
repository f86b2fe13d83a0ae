//! One session with the server, for SQL and for the binlog.
//!
//! An own client, so that one place enforces what every session must have: no password in a form that others can use, never a local
//! file, TLS as the options say, settings that no default of the server changes, and every length checked before it is believed. The
//! client that there is for Rust, `mysql_async`, unpacks a compressed transaction whole before anybody sees how long it is, passes over
//! what it does not know, and does not give its socket away for another reader of the stream.

mod login;
mod rsa;

use std::time::Duration;

use bytes::{Buf, BytesMut};
use headwater_connector::{Error, Result, codes as shared};
use rustls::pki_types::ServerName;
use socket2::{SockRef, TcpKeepalive};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::TlsConnector;

use crate::{
    codes,
    error::{ServerError, lost, protocol, torn},
    server::Server,
    tls,
    wire::Cursor,
};

/// No message of a login is longer: who is not known yet gets no more memory.
const MAX_LOGIN_MESSAGE: usize = 64 << 10;
/// No answer to SQL is longer, in one message or in all; the stream has its own limit.
const MAX_ANSWER: usize = 64 << 20;
/// Rows of the catalogue have few columns.
const MAX_COLUMNS: usize = 4096;
/// Free space before each read.
const READ_SIZE: usize = 16 << 10;
/// For a server that is gone.
const QUERY_TIMEOUT: Duration = Duration::from_secs(45);
/// An idle connection is probed after this time, and given up after three probes (N1: half-open, no FIN).
const KEEPALIVE: Duration = Duration::from_secs(30);
const PROBE_EVERY: Duration = Duration::from_secs(10);

/// The byte stream under a session.
pub trait Socket: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Socket for T {}

/// Which of the two servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flavour {
    Mysql,
    Mariadb,
}

impl Flavour {
    /// The word in identities and positions.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Mysql => "mysql",
            Self::Mariadb => "mariadb",
        }
    }
}

/// The rows of an answer; a cell is text or NULL.
pub type Rows = Vec<Vec<Option<String>>>;

/// An open session.
pub struct Connection {
    socket: Box<dyn Socket>,
    input: BytesMut,
    /// The longest message that is taken.
    limit: usize,
    sequence: u8,
    is_encrypted: bool,
    /// See [`Flavour`].
    pub flavour: Flavour,
    /// Major and minor.
    pub version: (u32, u32),
    /// As the server says it.
    pub version_text: String,
}

impl Connection {
    /// Connects, logs in, and pins the session's settings.
    pub async fn open(server: &Server) -> Result<Self> {
        let opening = Box::pin(async {
            let mut connection = login::log_in(server).await?;
            connection.limit = MAX_ANSWER;
            connection
                .query(
                    "SET NAMES utf8mb4, time_zone = '+00:00', sql_mode = '', autocommit = 1, sql_quote_show_create = 1, \
                     net_write_timeout = 600, net_read_timeout = 600, sql_select_limit = 18446744073709551615, sql_big_selects = 1",
                )
                .await?;
            if connection.flavour == Flavour::Mysql {
                // A key that the server made is in the binlog, so it must be in the catalogue. Before 8.0.30 there is none.
                let _ = connection.try_query("SET show_gipk_in_create_table_and_information_schema = ON").await?;
            }
            Ok(connection)
        });
        let result = timeout(server.connect_timeout, opening).await;
        let result = result.unwrap_or_else(|_| Err(unreachable("the server did not answer in time")));
        result.map_err(|error: Error| error.at("server", server.endpoint()))
    }

    fn new(socket: Box<dyn Socket>) -> Self {
        Self {
            socket,
            input: BytesMut::new(),
            limit: MAX_LOGIN_MESSAGE,
            sequence: 0,
            is_encrypted: false,
            flavour: Flavour::Mysql,
            version: (0, 0),
            version_text: String::new(),
        }
    }

    async fn connect(server: &Server) -> Result<Self> {
        let failed = |error: std::io::Error| unreachable("cannot connect").caused_by(error);
        let stream = TcpStream::connect((server.host.as_str(), server.port)).await.map_err(failed)?;
        stream.set_nodelay(true).map_err(failed)?;
        let probes = TcpKeepalive::new().with_time(KEEPALIVE).with_interval(PROBE_EVERY);
        SockRef::from(&stream).set_tcp_keepalive(&probes).map_err(failed)?;
        Ok(Self::new(Box::new(stream)))
    }

    /// Goes on encrypted.
    async fn encrypt(mut self, server: &Server) -> Result<Self> {
        if !self.input.is_empty() {
            return Err(protocol("the server sent bytes before the TLS handshake"));
        }
        let config = tls::client_config(server)?;
        let name = ServerName::try_from(server.host.clone())
            .map_err(|error| Error::new(&codes::TLS, "the host name cannot be in a certificate").caused_by(error))?;
        let socket = TlsConnector::from(config).connect(name, self.socket).await.map_err(tls::handshake_failed)?;
        self.socket = Box::new(socket);
        self.is_encrypted = true;
        Ok(self)
    }

    /// Whether TLS is on.
    pub fn is_encrypted(&self) -> bool {
        self.is_encrypted
    }

    /// Runs one statement and returns its rows.
    pub async fn query(&mut self, sql: &str) -> Result<Rows> {
        self.try_query(sql).await?.map_err(ServerError::into_error)
    }

    /// The first cell of the first row; none if there is none or it is NULL.
    pub async fn value(&mut self, sql: &str) -> Result<Option<String>> {
        self.value_within(sql, QUERY_TIMEOUT).await
    }

    /// The same with a statement that may take longer than others.
    pub async fn value_within(&mut self, sql: &str, limit: Duration) -> Result<Option<String>> {
        let rows = timeout(limit, self.run(sql)).await.map_err(|_| late())??.map_err(ServerError::into_error)?;
        Ok(rows.into_iter().next().and_then(|row| row.into_iter().next()).flatten())
    }

    /// Like [`query`](Self::query), with the server's refusal for the caller to match on.
    pub async fn try_query(&mut self, sql: &str) -> Result<Result<Rows, ServerError>> {
        timeout(QUERY_TIMEOUT, self.run(sql)).await.map_err(|_| late())?
    }

    /// Runs a statement whose rows are taken one by one as they come; an error of `take` leaves the session unusable.
    pub async fn query_rows(
        &mut self,
        sql: &str,
        mut take: impl FnMut(&[u8], usize) -> Result<()> + Send,
    ) -> Result<Result<(), ServerError>> {
        let running = async {
            let columns = match self.head(sql).await? {
                Ok(0) => return Ok(Ok(())),
                Ok(columns) => columns,
                Err(refused) => return Ok(Err(refused)),
            };
            loop {
                let message = self.receive().await?;
                match message.first() {
                    Some(254) if message.len() < 9 => return Ok(Ok(())),
                    Some(255) => return Ok(Err(ServerError::parse(&message[1..]).map_err(|_| torn("an error message"))?)),
                    _ => take(&message, columns)?,
                }
            }
        };
        timeout(QUERY_TIMEOUT, running).await.map_err(|_| late())?
    }

    /// No message of an answer may be longer.
    pub fn set_limit(&mut self, limit: usize) {
        self.limit = limit;
    }

    async fn run(&mut self, sql: &str) -> Result<Result<Rows, ServerError>> {
        let columns = match self.head(sql).await? {
            Ok(0) => return Ok(Ok(Vec::new())),
            Ok(columns) => columns,
            Err(refused) => return Ok(Err(refused)),
        };
        let (mut rows, mut size) = (Vec::new(), 0);
        loop {
            let message = self.receive().await?;
            match message.first() {
                Some(254) if message.len() < 9 => return Ok(Ok(rows)),
                Some(255) => return Ok(Err(ServerError::parse(&message[1..]).map_err(|_| torn("an error message"))?)),
                _ => {}
            }
            size += message.len() + (columns + 1) * size_of::<Option<String>>();
            if size > MAX_ANSWER {
                return Err(protocol("an answer to a statement is too long"));
            }
            rows.push(row(&message, columns)?);
        }
    }

    /// Sends a statement and takes what stands before its rows: how many columns they have, 0 if there are no rows.
    async fn head(&mut self, sql: &str) -> Result<Result<usize, ServerError>> {
        self.command(3, sql.as_bytes()).await?;
        let head = self.receive().await?;
        let columns = match head.first() {
            Some(0) => return Ok(Ok(0)),
            Some(255) => return Ok(Err(ServerError::parse(&head[1..]).map_err(|_| torn("an error message"))?)),
            // X1: the server wants a file of ours.
            Some(251) => return Err(login::unsafe_login("the server asked for a local file")),
            _ => Cursor::new(&head).count().map_err(|_| torn("the head of an answer"))?,
        };
        if columns > MAX_COLUMNS {
            return Err(protocol("an answer has too many columns"));
        }
        for _ in 0..=columns {
            // What the columns are is known; an end comes behind them.
            self.receive().await?;
        }
        Ok(Ok(columns))
    }

    /// Sends a command that answers with a stream; then the socket belongs to it.
    pub async fn start(mut self, command: u8, body: &[u8]) -> Result<(Box<dyn Socket>, BytesMut)> {
        self.command(command, body).await?;
        Ok((self.socket, self.input))
    }

    /// Sends a command that answers with OK or an error.
    pub async fn simple(&mut self, command: u8, body: &[u8]) -> Result<()> {
        let answer = async {
            self.command(command, body).await?;
            self.receive().await
        };
        let answer = timeout(QUERY_TIMEOUT, answer).await.map_err(|_| lost("the server did not answer in time"))??;
        match answer.first() {
            Some(255) => Err(ServerError::parse(&answer[1..]).map_err(|_| torn("an error message"))?.into_error()),
            _ => Ok(()),
        }
    }

    /// Says goodbye. An error here is of no interest: the server ends the session either way.
    pub async fn close(mut self) {
        let _ = timeout(Duration::from_secs(1), self.command(1, &[])).await;
    }

    async fn command(&mut self, command: u8, body: &[u8]) -> Result<()> {
        self.sequence = 0;
        let mut message = Vec::with_capacity(1 + body.len());
        message.push(command);
        message.extend_from_slice(body);
        self.send(&message).await
    }

    async fn send(&mut self, body: &[u8]) -> Result<()> {
        let mut out = Vec::with_capacity(body.len() + 4);
        let mut chunks = body.chunks(0xff_ffff).peekable();
        loop {
            let chunk = chunks.next().unwrap_or_default();
            out.extend_from_slice(&(chunk.len() as u32).to_le_bytes()[..3]);
            out.push(self.sequence);
            out.extend_from_slice(chunk);
            self.sequence = self.sequence.wrapping_add(1);
            // A full packet is followed by another, and be it empty.
            if chunk.len() < 0xff_ffff && chunks.peek().is_none() {
                break;
            }
        }
        self.socket.write_all(&out).await.map_err(broken)?;
        self.socket.flush().await.map_err(broken)
    }

    /// The next message, put together from its packets.
    async fn receive(&mut self) -> Result<BytesMut> {
        let mut whole: Option<BytesMut> = None;
        loop {
            let packet = self.packet(whole.as_ref().map_or(0, |whole| whole.len())).await?;
            let is_last = packet.len() < 0xff_ffff;
            match &mut whole {
                None if is_last => return Ok(packet),
                None => whole = Some(packet),
                Some(whole) => whole.extend_from_slice(&packet),
            }
            if is_last {
                return Ok(whole.unwrap_or_default());
            }
        }
    }

    async fn packet(&mut self, before: usize) -> Result<BytesMut> {
        loop {
            if let Some(head) = self.input.first_chunk::<4>() {
                let len = u32::from_le_bytes([head[0], head[1], head[2], 0]) as usize;
                if before + len > self.limit {
                    return Err(protocol("a message is too long"));
                }
                if self.input.len() >= 4 + len {
                    self.sequence = head[3].wrapping_add(1);
                    self.input.advance(4);
                    return Ok(self.input.split_to(len));
                }
            }
            self.input.reserve(READ_SIZE);
            if self.socket.read_buf(&mut self.input).await.map_err(broken)? == 0 {
                return Err(lost("the server closed the connection"));
            }
        }
    }
}

fn row(message: &[u8], columns: usize) -> Result<Vec<Option<String>>> {
    let mut cursor = Cursor::new(message);
    let text = |cell: &[u8]| String::from_utf8_lossy(cell).into_owned();
    (0..columns).map(|_| Ok(cell(&mut cursor)?.map(text))).collect()
}

/// Takes a cell off the front of a row; none is NULL.
#[inline]
pub fn cell<'a>(row: &mut Cursor<'a>) -> Result<Option<&'a [u8]>> {
    if row.rest().first() == Some(&251) {
        let _ = row.u8();
        return Ok(None);
    }
    row.bytes().map(Some).map_err(|_| torn("a result row"))
}

fn broken(error: std::io::Error) -> Error {
    lost("the connection broke").caused_by(error)
}

fn late() -> Error {
    lost("the server did not answer a statement in time")
}

fn unreachable(what: &str) -> Error {
    Error::new(&shared::UNREACHABLE, what).hint("Check host and port in the url, and that the server runs and is not firewalled.")
}

/// A name in backquotes.
pub fn ident(name: &str) -> String {
    format!("`{}`", name.replace('`', "``"))
}

/// A text in quotes, whatever the SQL mode says of backslashes: a session of ours has an empty one.
pub fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\\', "\\\\").replace('\'', "''"))
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    /// A session with a server that says this, whatever it is asked, and hangs up.
    async fn answered(said: &[u8]) -> (Connection, tokio::io::DuplexStream) {
        let (ours, mut theirs) = tokio::io::duplex(1 << 16);
        theirs.write_all(said).await.expect("room");
        theirs.shutdown().await.expect("an end");
        (Connection::new(Box::new(ours)), theirs)
    }

    /// Messages in packets, the lengths of which are right as often as not.
    fn said() -> impl Strategy<Value = Vec<u8>> {
        let message = (prop_oneof![Just(None), any::<u8>().prop_map(Some)], vec(any::<u8>(), 0..40));
        vec(message, 0..8).prop_map(|messages| {
            let packet = |(claimed, body): &(Option<u8>, Vec<u8>)| {
                let len = claimed.map_or(body.len() as u32, u32::from);
                [&len.to_le_bytes()[..3], &[0], body].concat()
            };
            messages.iter().flat_map(packet).collect()
        })
    }

    proptest! {
        #[test]
        fn any_answer_is_read_or_refused(said in prop_oneof![said(), vec(any::<u8>(), 0..200)]) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
            runtime.block_on(async {
                let (mut connection, _theirs) = answered(&said).await;
                let _ = connection.try_query("SELECT 1").await;
                let (mut connection, _theirs) = answered(&said).await;
                let _ = connection.query_rows("SELECT 1", |row, columns| {
                    let mut cursor = Cursor::new(row);
                    (0..columns).try_for_each(|_| cell(&mut cursor).map(drop))
                }).await;
                let (mut connection, _theirs) = answered(&said).await;
                let _ = connection.simple(21, &[]).await;
            });
        }
    }
}
