//! One session with the server, for SQL and for replication.
//!
//! An own client, so that one place enforces what every session must have: SCRAM only, TLS as the options say, and settings
//! that no `ALTER ROLE` or `ALTER DATABASE` can change. SQL goes by the simple query protocol with quoted literals.

mod dial;
mod login;

use std::{collections::HashMap, time::Duration};

use bytes::{Buf, BytesMut};
use headwater_connector::{Error, Result};
use postgres_protocol::message::frontend;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    time::timeout,
};

use crate::{
    codes,
    error::{ServerError, lost, protocol},
    server::{Address, Host, Server, Target},
    tls,
    wire::Cursor,
};

/// No message of a login is longer: who is not known yet gets no more memory.
const MAX_LOGIN_MESSAGE: usize = 64 << 10;
/// No answer to SQL is longer, in one message or in all; the stream has its own limit.
const MAX_ANSWER: usize = 256 << 20;
/// What a cell and a row cost besides their bytes.
const CELL: usize = size_of::<Option<String>>();
/// Servers report fifteen settings.
const MAX_PARAMETERS: usize = 256;
/// Free space before each read.
const READ_SIZE: usize = 16 << 10;
/// The same while rows are read: many are worth one wake-up.
const ROWS_READ_SIZE: usize = 128 << 10;
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

/// An open session.
pub struct Connection {
    socket: Box<dyn Socket>,
    input: BytesMut,
    /// The longest message that is taken.
    limit: usize,
    parameters: HashMap<String, String>,
    address: Address,
    /// The binding data of the server's certificate.
    end_point: Option<Vec<u8>>,
    encrypted: bool,
    facts: Facts,
}

/// What the login told.
#[derive(Debug, Default)]
struct Facts {
    /// The login was bound to the TLS channel.
    bound: bool,
    /// The process that the server says serves this session, by its own message and by SQL.
    key_pid: i32,
    sql_pid: i32,
    /// When the server started: no two servers share it to the microsecond.
    instance: String,
    standby: bool,
}

/// The rows of an answer; a cell is text or NULL.
pub type Rows = Vec<Vec<Option<String>>>;

impl Connection {
    /// Connects to the first host that will do, logs in, and makes sure of the session's settings.
    pub async fn open(server: &Server, purpose: Purpose) -> Result<Self> {
        dial::open(server, purpose).await
    }

    fn new(socket: Box<dyn Socket>, address: Address) -> Self {
        Self {
            socket,
            input: BytesMut::new(),
            limit: MAX_LOGIN_MESSAGE,
            parameters: HashMap::new(),
            address,
            end_point: None,
            encrypted: false,
            facts: Facts::default(),
        }
    }

    /// The same server options, narrowed to the very server that this session is on: whatever the other hosts and names stand
    /// for by now, a second session ends there or fails.
    pub fn pin(&self, server: &Server) -> Server {
        let instance = Some(self.facts.instance.clone());
        Server { hosts: vec![self.address.clone()], target: Target::Any, instance, ..server.clone() }
    }

    /// Whether the session goes over a unix socket.
    pub fn is_unix(&self) -> bool {
        matches!(self.address.host, Host::Unix(_))
    }

    /// Whether the login was SCRAM-SHA-256-PLUS, bound to the TLS channel.
    pub fn is_bound(&self) -> bool {
        self.facts.bound
    }

    /// Whether the process that the server named at the login is the one that answers. A pooler in between invents the first.
    pub fn is_direct(&self) -> bool {
        self.facts.key_pid == self.facts.sql_pid
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
        timeout(patience, self.run(sql)).await.map_err(|_| silent())?
    }

    async fn run(&mut self, sql: &str) -> Result<Result<Rows, ServerError>> {
        self.send_query(sql).await?;
        let mut rows = Vec::new();
        let mut refused = None;
        let mut size = 0;
        loop {
            let (tag, body) = self.receive().await?;
            match tag {
                b'D' => {
                    let row = data_row(&body)?;
                    size += body.len() + (row.len() + 1) * CELL;
                    if size > MAX_ANSWER {
                        return Err(protocol("an answer to a statement is too long"));
                    }
                    rows.push(row);
                }
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

    /// Runs one statement and hands over each row's bytes as they come: a number of cells, and for each its length and its text.
    pub async fn query_rows(
        &mut self,
        sql: &str,
        row: impl FnMut(&[u8]) -> Result<()> + Send,
    ) -> Result<Result<(), ServerError>> {
        timeout(QUERY_TIMEOUT, self.each_row(sql, row)).await.map_err(|_| silent())?
    }

    async fn each_row(&mut self, sql: &str, mut row: impl FnMut(&[u8]) -> Result<()> + Send) -> Result<Result<(), ServerError>> {
        self.send_query(sql).await?;
        let mut refused = None;
        loop {
            // What has come is handed over where it lies; a buffer for each row would cost more than its bytes.
            let mut done = 0;
            while let Some((b'D', len)) = self.whole_message(done)? {
                row(&self.input[done + 5..done + len])?;
                done += len;
            }
            self.input.advance(done);
            self.input.reserve(ROWS_READ_SIZE);
            let (tag, body) = self.receive().await?;
            match tag {
                b'D' => row(&body)?,
                b'E' => refused = Some(server_error(&body)?),
                b'S' => self.note_parameter(&body)?,
                b'Z' => return Ok(refused.map_or(Ok(()), Err)),
                b'T' | b'C' | b'N' | b'I' => {}
                _ => return Err(protocol("an unexpected message came in answer to a statement")),
            }
            if let Some(error) = refused.as_ref().filter(|error| error.state.starts_with("57P")) {
                return Ok(Err(error.clone()));
            }
        }
    }

    /// Has the server look whether this is one statement that it could run.
    pub async fn parse(&mut self, sql: &str) -> Result<Result<(), ServerError>> {
        timeout(QUERY_TIMEOUT, self.look_at(sql)).await.map_err(|_| silent())?
    }

    async fn look_at(&mut self, sql: &str) -> Result<Result<(), ServerError>> {
        let mut out = BytesMut::new();
        frontend::parse("", sql, [], &mut out).map_err(|_| protocol("a statement holds a zero byte"))?;
        frontend::sync(&mut out);
        self.send(&out).await?;
        let mut refused = None;
        loop {
            let (tag, body) = self.receive().await?;
            match tag {
                b'E' => refused = Some(server_error(&body)?),
                b'S' => self.note_parameter(&body)?,
                b'Z' => return Ok(refused.map_or(Ok(()), Err)),
                b'1' | b'N' => {}
                _ => return Err(protocol("an unexpected message came in answer to a statement")),
            }
            if let Some(error) = refused.as_ref().filter(|error| error.state.starts_with("57P")) {
                return Ok(Err(error.clone()));
            }
        }
    }

    /// Sends a replication command that answers with a two-way copy; then the socket belongs to the stream.
    pub async fn start_copy(&mut self, command: &str) -> Result<Result<(), ServerError>> {
        timeout(QUERY_TIMEOUT, self.begin_copy(command)).await.map_err(|_| silent())?
    }

    async fn begin_copy(&mut self, command: &str) -> Result<Result<(), ServerError>> {
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
        let ready = async {
            while self.receive().await?.0 != b'Z' {}
            Ok(())
        };
        timeout(QUERY_TIMEOUT, ready).await.map_err(|_| silent())?
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
            if let Some((tag, len)) = self.whole_message(0)? {
                let mut message = self.input.split_to(len);
                message.advance(5);
                return Ok((tag, message));
            }
            self.input.reserve(READ_SIZE);
            if self.socket.read_buf(&mut self.input).await.map_err(broken)? == 0 {
                return Err(lost("the server closed the connection"));
            }
        }
    }

    /// The tag and the whole length of the message that begins at `at` of what was read, once all of it is there.
    fn whole_message(&self, at: usize) -> Result<Option<(u8, usize)>> {
        let Some(header) = self.input.get(at..at + 5) else { return Ok(None) };
        let len = Cursor::new(&header[1..]).u32().unwrap_or_default() as usize;
        if !(4..=self.limit).contains(&len) {
            return Err(self.garbled("a message has an impossible length"));
        }
        Ok((self.input.len() - at > len).then_some((header[0], len + 1)))
    }

    /// Before the first words of a login, what answers may be anything.
    fn garbled(&self, what: &str) -> Error {
        if self.limit == MAX_LOGIN_MESSAGE { not_postgres(what) } else { protocol(what) }
    }

    fn note_parameter(&mut self, body: &[u8]) -> Result<()> {
        let mut cursor = Cursor::new(body);
        let (Ok(name), Ok(value)) = (cursor.text(), cursor.text()) else { return Err(protocol("a setting's report is torn")) };
        if self.parameters.len() >= MAX_PARAMETERS {
            return Err(protocol("the server reports too many settings"));
        }
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

fn silent() -> Error {
    lost("the server did not answer a statement in time")
}

fn broken(error: std::io::Error) -> Error {
    tls::refused_by_server(&error).unwrap_or_else(|| lost("the connection to the server broke").caused_by(error))
}

fn not_postgres(what: &str) -> Error {
    Error::new(&codes::NOT_POSTGRES, format!("what answers does not speak PostgreSQL's protocol: {what}"))
        .hint("Check host and port in the url.")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn quoting_doubles_quotes() {
        assert_eq!(ident("a\"; DROP--"), "\"a\"\"; DROP--\"");
        assert_eq!(literal("it's \\"), "'it''s \\'");
    }

    #[test]
    fn torn_rows_are_refused() {
        assert_eq!(data_row(b"\0\x02\0\0\0\x01a\xff\xff\xff\xff").unwrap(), [Some("a".to_owned()), None]);
        assert!(data_row(b"\0\x02\0\0\0\x09a").is_err());
        assert!(data_row(b"\xff\xff\xff\xff\xff\xff").is_err(), "65535 columns, and one of them there");
    }

    fn over(socket: tokio::io::DuplexStream) -> Connection {
        let address = Address { host: Host::Tcp("test".into()), port: 1, resolved: None };
        Connection::new(Box::new(socket), address)
    }

    #[tokio::test]
    async fn an_answer_without_end_is_cut_off() {
        let (mut server, client) = tokio::io::duplex(1 << 20);
        let mut connection = over(client);
        connection.limit = MAX_ANSWER;
        // A thousand NULLs cost four bytes each on the wire and six times that in memory.
        let mut row = b"D\0\0\x0f\xa6\x03\xe8".to_vec();
        row.resize(7 + 4000, 0xff);
        let feeding = tokio::spawn(async move { while server.write_all(&row).await.is_ok() {} });
        let error = connection.query("SELECT").await.expect_err("an end");
        assert_eq!((error.code().id, error.what().as_str()), ("HW2026", "an answer to a statement is too long"));
        drop(connection);
        feeding.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_server_ends_every_command() {
        let (_server, client) = tokio::io::duplex(1 << 20);
        let mut connection = over(client);
        for error in [
            connection.query("SELECT").await.map(drop).expect_err("query"),
            connection.start_copy("START_REPLICATION").await.map(drop).expect_err("copy"),
            connection.recover().await.expect_err("recover"),
        ] {
            assert_eq!(error.code().id, "HW0003", "{error}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(512))]

        #[test]
        fn arbitrary_bytes_end_a_session_without_panic(
            pieces in prop::collection::vec((prop::sample::select(b"RSKZDTCENIWvdcH\0".to_vec()), any::<u32>(), any::<Vec<u8>>(), any::<bool>()), 0..8),
            copy: bool,
        ) {
            let mut bytes = Vec::new();
            for (tag, len, body, honest) in pieces {
                bytes.push(tag);
                bytes.extend(if honest { body.len() as u32 + 4 } else { len >> (len % 32) }.to_be_bytes());
                bytes.extend(body);
            }
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
            runtime.block_on(async {
                let (mut server, client) = tokio::io::duplex(1 << 20);
                server.write_all(&bytes).await.unwrap();
                server.shutdown().await.unwrap();
                let mut connection = over(client);
                connection.limit = MAX_ANSWER;
                let _ = if copy { connection.start_copy("x").await.map(drop) } else { connection.query("x").await.map(drop) };
                // A length that is claimed is believed only as far as bytes arrive.
                assert!(connection.input.capacity() <= (1 << 20) + 16384);
            });
        }

        #[test]
        fn bodies_of_arbitrary_bytes_never_panic(body: Vec<u8>) {
            let _ = data_row(&body);
            let _ = server_error(&body);
            let _ = over(tokio::io::duplex(1).0).note_parameter(&body);
        }
    }
}
