//! Has the server send its binlog from a place on.

use std::time::Duration;

use bytes::Bytes;
use headwater_connector::{Result, codes as shared};

use crate::{
    binlog::{self, HEAD, Query, kind},
    config::Settings,
    connection::{Connection, Flavour, literal},
    error::{lost, torn},
    gtid::MariaGtid,
    inspect,
    position::{Place, Spot},
    stops,
    stream::{Chunk, Stream},
};

/// An idle server says so this often.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// One that is silent for longer is gone.
const SILENCE: Duration = Duration::from_secs(60);
/// An event that only its head is wanted of.
const MAX_GLANCE: usize = 1 << 30;

/// Behind the four bytes that say what it is.
pub const FILE_START: u64 = 4;

const REGISTER_REPLICA: u8 = 21;
const DUMP: u8 = 18;
const DUMP_GTID: u8 = 30;

/// The flag that has the server end the stream at the end of its binlog.
const NON_BLOCK: u16 = 1;
/// The number of those that are no replica: nobody is hung up on for their sake.
const NOBODY: u32 = 0;

/// Tells the server who we are and from where on it is to send, for ever.
pub async fn begin(mut connection: Connection, place: &Place, settings: &Settings) -> Result<Stream> {
    let uuid = literal(&settings.replica_uuid);
    connection.query(&format!("SET @slave_uuid = {uuid}, @replica_uuid = {uuid}")).await?;
    let mut body = settings.server_id.to_le_bytes().to_vec();
    let name = b"headwater";
    body.push(name.len() as u8);
    body.extend_from_slice(name);
    // No user, no password, no port, no rank, no source.
    body.extend_from_slice(&[0; 2 + 2 + 4 + 4]);
    connection.simple(REGISTER_REPLICA, &body).await?;
    request(connection, place, (0, settings.server_id), settings.max_event_bytes).await
}

/// When the first of what is behind the place was written, in seconds since 1970; none if that is nothing.
pub async fn first_time(connection: Connection, place: &Place) -> Result<Option<u32>> {
    time_of_first(connection, place, is_of_transaction).await
}

/// When a file of the server was begun, in seconds since 1970.
pub async fn born(connection: Connection, file: &str) -> Result<u32> {
    let place = of_file(&Spot::new(file, FILE_START))?;
    let time = time_of_first(connection, &place, |number| number == kind::FORMAT_DESCRIPTION).await?;
    time.ok_or_else(|| lost("the server did not send the beginning of a file"))
}

/// Whether a file of MariaDB has the end of a transaction too, whose beginning stands behind the spot. Its name does not tell it: the next
/// transaction behind one that has no end gets the same.
pub async fn has_end_of(connection: Connection, spot: &Spot, gtid: MariaGtid) -> Result<bool> {
    let mut glance = Glance::begin(connection, &of_file(spot)?).await?;
    let mut is_inside = false;
    // The server says so of a file that ends within an event; behind one that ends between two of them comes the next file.
    while let Some(event) = glance.next().await? {
        let Some((kind, body)) = event.get(4).zip(event.get(HEAD..)) else { return Err(torn("an event")) };
        match *kind {
            kind::XID | kind::XA_PREPARE if is_inside => return Ok(true),
            kind::QUERY if is_inside && Query::parse(body).is_ok_and(|query| ends(query.text)) => return Ok(true),
            kind::MARIA_GTID | kind::FORMAT_DESCRIPTION if is_inside => return Ok(false),
            kind::MARIA_GTID => is_inside = binlog::is_maria_gtid(body, gtid),
            _ => {}
        }
    }
    Ok(false)
}

/// What may stand behind a word that ends a transaction is a checksum.
fn ends(text: &[u8]) -> bool {
    text.starts_with(b"COMMIT") || text.starts_with(b"ROLLBACK") && !text.starts_with(b"ROLLBACK TO")
}

/// A place that is one of files, whatever the server knows of names.
fn of_file(spot: &Spot) -> Result<Place> {
    let set = inspect::up_to(spot).ok_or_else(|| torn("the name of a file"))?;
    Ok(Place { set, from: None, partial: None, spot: spot.clone() })
}

async fn time_of_first(connection: Connection, place: &Place, is_wanted: fn(u8) -> bool) -> Result<Option<u32>> {
    let mut glance = Glance::begin(connection, place).await?;
    while let Some(event) = glance.next().await? {
        if let Some((time, kind)) = event.first_chunk::<4>().zip(event.get(4))
            && is_wanted(*kind)
        {
            return Ok(Some(u32::from_le_bytes(*time)));
        }
    }
    Ok(None)
}

/// What the server has now behind a place, event by event.
struct Glance {
    stream: Stream,
    chunk: Option<Chunk>,
}

impl Glance {
    async fn begin(connection: Connection, place: &Place) -> Result<Self> {
        let stream = request(connection, place, (NON_BLOCK, NOBODY), MAX_GLANCE).await?;
        Ok(Self { stream, chunk: None })
    }

    /// None where the server ends it.
    async fn next(&mut self) -> Result<Option<Bytes>> {
        let event = loop {
            if let Some(event) = self.chunk.as_mut().and_then(Chunk::next_event) {
                break event;
            }
            match self.stream.next().await {
                Ok(chunk) => self.chunk = Some(chunk),
                Err(error) => break Err(error),
            }
        };
        match event {
            Err(error) if error.code().id == shared::CONNECTION_LOST.id => Ok(None),
            event => event.map(Some),
        }
    }
}

/// Whether it is no event of the file or of the stream itself.
fn is_of_transaction(number: u8) -> bool {
    let of_files =
        [kind::STOP, kind::ROTATE, kind::FORMAT_DESCRIPTION, kind::PREVIOUS_GTIDS, kind::HEARTBEAT, kind::HEARTBEAT_V2];
    let of_maria = [kind::BINLOG_CHECKPOINT, kind::GTID_LIST, kind::START_ENCRYPTION];
    !of_files.contains(&number) && !of_maria.contains(&number)
}

async fn request(mut connection: Connection, place: &Place, (flags, id): (u16, u32), max_event: usize) -> Result<Stream> {
    let beat = HEARTBEAT.as_nanos();
    connection
        .query(&format!(
            "SET @master_heartbeat_period = {beat}, @source_heartbeat_period = {beat}, \
             @master_binlog_checksum = 'CRC32', @source_binlog_checksum = 'CRC32'"
        ))
        .await?;
    let (flags, id) = (flags.to_le_bytes(), id.to_le_bytes());
    let (command, body) = match connection.flavour {
        flavour if place.is_of_files() => {
            if flavour == Flavour::Mariadb {
                connection.query("SET @mariadb_slave_capability = 4").await?;
            }
            let at = u32::try_from(place.spot.at).map_err(|_| stops::too_far(&place.spot))?;
            let mut body = at.to_le_bytes().to_vec();
            body.extend_from_slice(&flags);
            body.extend_from_slice(&id);
            body.extend_from_slice(place.spot.file.as_bytes());
            (DUMP, body)
        }
        Flavour::Mysql => {
            let set = place.set.encode();
            let mut body = flags.to_vec();
            body.extend_from_slice(&id);
            // No file: the set alone says where.
            body.extend_from_slice(&0_u32.to_le_bytes());
            body.extend_from_slice(&4_u64.to_le_bytes());
            body.extend_from_slice(&(set.len() as u32).to_le_bytes());
            body.extend_from_slice(&set);
            (DUMP_GTID, body)
        }
        Flavour::Mariadb => {
            let state = literal(&place.from.as_ref().unwrap_or(&place.set).to_string());
            connection
                .query(&format!(
                    "SET @mariadb_slave_capability = 4, @slave_connect_state = {state}, @slave_gtid_strict_mode = 1, \
                     @slave_gtid_ignore_duplicates = 0"
                ))
                .await?;
            let mut body = 4_u32.to_le_bytes().to_vec();
            body.extend_from_slice(&flags);
            body.extend_from_slice(&id);
            (DUMP, body)
        }
    };
    let (socket, input) = connection.start(command, &body).await?;
    Ok(Stream::start(socket, input, SILENCE, max_event))
}
