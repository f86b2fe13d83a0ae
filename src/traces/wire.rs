//! As much of PostgreSQL's replication protocol as a reader of a slot needs, and no more: the trace must show what the server
//! does, not what our connector makes of it.

use std::{
    collections::VecDeque,
    io::{Error, ErrorKind, Read, Result, Write},
    os::unix::net::UnixStream,
    path::Path,
};

use super::PATIENCE;
use crate::pipeline::simulation::Lsn;

/// A transaction as it was sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sent {
    pub commit: Lsn,
    pub end: Lsn,
    /// The first column of each row, and where its record is.
    pub rows: Vec<(u32, Lsn)>,
}

/// An open stream.
pub struct Wire {
    stream: UnixStream,
    /// What was read before anybody asked for it.
    ahead: VecDeque<u8>,
    complete: VecDeque<Sent>,
    open: Option<Sent>,
    /// How far the server has read its log, as it said last.
    pub reached: Lsn,
    /// The process at the other end.
    pub pid: i32,
    /// The time of the last message, which only counts messages.
    sent: u64,
}

/// PostgreSQL counts from 2000.
const SINCE_1970_US: i64 = 946_684_800_000_000;

impl Wire {
    /// Connects for replication, over the socket in `directory`, where the server trusts its own user.
    pub fn connect(directory: &Path, port: u16, database: &str) -> Result<Self> {
        let stream = UnixStream::connect(directory.join(format!(".s.PGSQL.{port}")))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let ahead = VecDeque::new();
        let mut wire = Self { stream, ahead, complete: VecDeque::new(), open: None, reached: 0, pid: 0, sent: 0 };
        let mut startup = 196_608_u32.to_be_bytes().to_vec();
        startup.extend_from_slice(format!("user\0postgres\0database\0{database}\0replication\0database\0\0").as_bytes());
        wire.write(None, &startup)?;
        loop {
            match wire.message()? {
                (b'K', body) => wire.pid = i32::from_be_bytes(body[..4].try_into().unwrap()),
                (b'Z', _) => return Ok(wire),
                _ => {}
            }
        }
    }

    /// START_REPLICATION; the SQLSTATE if the server refuses.
    pub fn start(&mut self, slot: &str, at: Lsn) -> Result<std::result::Result<(), String>> {
        let (high, low) = (at >> 32, at & 0xffff_ffff);
        let options = "(proto_version '1', publication_names 'captured')";
        let command = format!("START_REPLICATION SLOT {slot} LOGICAL {high:X}/{low:X} {options}\0");
        self.write(Some(b'Q'), command.as_bytes())?;
        loop {
            match self.message()? {
                (b'W', _) => return Ok(Ok(())),
                (b'E', body) => return Ok(Err(state(&body))),
                _ => {}
            }
        }
    }

    /// The next transaction; none if the server has read its log up to `target` and found nothing.
    pub fn next(&mut self, target: Lsn) -> Result<Option<Sent>> {
        loop {
            if let Some(sent) = self.complete.pop_front() {
                return Ok(Some(sent));
            }
            if self.reached >= target {
                return Ok(None);
            }
            self.ask()?;
        }
    }

    /// Confirms. When the server shows the time that is returned as that of our last message, in microseconds since 1970, it has
    /// taken note.
    pub fn confirm(&mut self, at: Lsn) -> Result<i64> {
        self.status(at, false)?;
        self.status(0, false)?;
        Ok(self.sent as i64 + SINCE_1970_US)
    }

    fn status(&mut self, flushed: Lsn, answer: bool) -> Result<()> {
        self.sent += 1;
        let mut status = vec![b'r'];
        for number in [flushed, flushed, flushed, self.sent] {
            status.extend_from_slice(&number.to_be_bytes());
        }
        status.push(answer.into());
        self.write(Some(b'd'), &status)
    }

    /// Asks for a sign of life and reads until one comes.
    fn ask(&mut self) -> Result<()> {
        self.status(0, true)?;
        loop {
            let (kind, body) = self.message()?;
            match (kind, body.first()) {
                (b'd', Some(b'k')) => {
                    self.reached = self.reached.max(number(&body[1..]));
                    // The server asks by itself only when it has waited long.
                    if body[17] == 0 {
                        return Ok(());
                    }
                }
                (b'd', Some(b'w')) => self.change(number(&body[1..]), &body[25..]),
                _ => return Err(Error::new(ErrorKind::ConnectionAborted, "the server ended the stream")),
            }
        }
    }

    fn change(&mut self, at: Lsn, body: &[u8]) {
        match body[0] {
            b'B' => self.open = Some(Sent { commit: number(&body[1..]), end: 0, rows: Vec::new() }),
            b'I' => {
                // Relation, 'N', number of columns, 't', length, text.
                let length = u32::from_be_bytes(body[9..13].try_into().unwrap()) as usize;
                let text = std::str::from_utf8(&body[13..13 + length]).unwrap();
                self.open.as_mut().unwrap().rows.push((text.parse().unwrap(), at));
            }
            b'C' => {
                let mut sent = self.open.take().unwrap();
                assert_eq!(sent.commit, number(&body[2..]));
                sent.end = number(&body[10..]);
                self.complete.push_back(sent);
            }
            _ => {}
        }
    }

    fn write(&mut self, kind: Option<u8>, body: &[u8]) -> Result<()> {
        let mut frame: Vec<u8> = kind.into_iter().collect();
        frame.extend_from_slice(&(body.len() as u32 + 4).to_be_bytes());
        frame.extend_from_slice(body);
        self.stream.write_all(&frame)
    }

    fn message(&mut self) -> Result<(u8, Vec<u8>)> {
        let mut head = [0; 5];
        self.read(&mut head)?;
        let length = u32::from_be_bytes(head[1..].try_into().unwrap()) as usize - 4;
        let mut body = vec![0; length];
        self.read(&mut body)?;
        Ok((head[0], body))
    }

    fn read(&mut self, out: &mut [u8]) -> Result<()> {
        let there = out.len().min(self.ahead.len());
        let (first, rest) = out.split_at_mut(there);
        self.ahead.read_exact(first)?;
        self.stream.read_exact(rest)
    }

    /// Takes what has arrived, for later. A server that is told to end cannot while nobody reads what it says.
    pub fn read_ahead(&mut self) -> Result<()> {
        self.stream.set_nonblocking(true)?;
        let mut page = vec![0; 64 << 10];
        while let Ok(length @ 1..) = self.stream.read(&mut page) {
            self.ahead.extend(&page[..length]);
        }
        self.stream.set_nonblocking(false)
    }
}

fn number(bytes: &[u8]) -> Lsn {
    u64::from_be_bytes(bytes[..8].try_into().unwrap())
}

/// The SQLSTATE of an error.
fn state(body: &[u8]) -> String {
    let fields = body.split(|byte| *byte == 0);
    let code = fields.into_iter().find_map(|field| field.strip_prefix(b"C"));
    String::from_utf8_lossy(code.unwrap_or_default()).into_owned()
}
