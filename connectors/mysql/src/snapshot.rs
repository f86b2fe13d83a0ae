//! Which transactions a chunk's snapshot saw, and how far the binlog went then.

use std::sync::Arc;

use headwater_connector::{Gate, Position, Result, Snapshot, fault};

use crate::{
    catalog::cell,
    connection::{self, Connection, Flavour},
    error::{ServerError, protocol},
    gate::{Awaited, committing},
    gtid::{Gtid, GtidSet},
    inspect,
    position::{Mark, Place, Spot},
    trail::{Doubt, Trail},
    wire::Cursor as Bytes,
    xid::Xid,
};

/// Events that only say how to read a file, and end up between a snapshot's place and the end of the binlog.
const EMPTY_EVENTS: [&str; 6] = ["Format_desc", "Gtid_list", "Binlog_checkpoint", "Start_encryption", "Stop", "Previous_gtids"];
/// More of them never follow each other.
const MAX_EMPTY: usize = 64;

/// What was visible to a snapshot of MySQL: every transaction that was in `gtid_executed` before it.
struct Executed(GtidSet);

impl Snapshot for Executed {
    fn sees(&self, transaction: &str) -> bool {
        Gtid::parse(transaction).is_some_and(|gtid| self.0.contains(gtid))
    }
}

/// The transaction of a chunk has begun.
pub enum Taken {
    /// The snapshot does not see yet what it must.
    Waiting(String),
    /// It does.
    Snapshot {
        /// What it saw.
        seen: Arc<dyn Snapshot>,
        /// Behind everything that it saw; none if that is found out when the rows are read.
        barrier: Option<Spot>,
    },
}

/// Begins the transaction of a chunk on MySQL. The snapshot is taken by its first statement that reads, so behind what is asked here.
async fn begin_mysql(connection: &mut Connection, gate: Option<&Awaited>) -> Result<Taken> {
    // What holds its name no more by now is in `gtid_executed` by the next statement, or was rolled back.
    let held = match gate {
        Some(Awaited::Commits(wanted)) if !wanted.is_empty() => {
            committing(connection).await?.into_iter().filter(|gtid| wanted.contains(gtid)).collect()
        }
        _ => Vec::new(),
    };
    if let Some(first) = held.first() {
        let more = if held.len() > 1 { format!(" and {} others", held.len() - 1) } else { String::new() };
        return Ok(Taken::Waiting(format!("transaction {first}{more} to be committed")));
    }
    let mut executed = inspect::gtids(connection, "gtid_executed").await?;
    if fault::variant("watermark-window") {
        committing(connection).await?.into_iter().for_each(|gtid| executed.insert(gtid));
    }
    connection.query("START TRANSACTION READ ONLY").await?;
    Ok(Taken::Snapshot { seen: Arc::new(Executed(executed)), barrier: None })
}

/// Begins the transaction of a chunk on MariaDB, which says at which place of the binlog the snapshot stands.
async fn begin_mariadb(connection: &mut Connection, gate: Option<&Awaited>, trail: &Trail) -> Result<Taken> {
    let end = inspect::spot(connection).await?.mark();
    let doubt = Doubt { names: prepared(connection).await?, end };
    connection.query("START TRANSACTION WITH CONSISTENT SNAPSHOT, READ ONLY").await?;
    let rows = connection.query("SHOW STATUS LIKE 'binlog_snapshot_%'").await?;
    let value = |name: &str| rows.iter().find(|row| cell(row, 0).eq_ignore_ascii_case(name)).map(|row| cell(row, 1));
    let mut spot = match (value("binlog_snapshot_file"), value("binlog_snapshot_position").and_then(|at| at.parse().ok())) {
        (Some(file), Some(at)) if !file.is_empty() => Spot::new(file, at),
        _ => return Err(protocol("the snapshot's place in the binlog cannot be read")),
    };
    if fault::variant("watermark-window") {
        spot = inspect::spot(connection).await?;
    }
    let floor = match gate {
        Some(Awaited::End(end)) => trail.floor().max(*end),
        _ => trail.floor(),
    };
    let mut at = spot.mark();
    if at < floor {
        at = behind_empty_events(connection, &spot, floor).await?;
    }
    if at < floor {
        let words = format!("the transactions at {}:{} of the binlog to be committed", spot.file, spot.at);
        return Ok(Taken::Waiting(words));
    }
    if trail.lacks(&doubt, floor) {
        return Ok(Taken::Waiting("prepared transactions to be committed".to_owned()));
    }
    match trail.cut(at, doubt) {
        Some(seen) => Ok(Taken::Snapshot { seen, barrier: Some(spot) }),
        None => Ok(Taken::Waiting("the stream to be opened".to_owned())),
    }
}

/// What is prepared now, or not done yet with its XA COMMIT.
async fn prepared(connection: &mut Connection) -> Result<Vec<Xid>> {
    let mut names = Vec::new();
    let take = |row: &[u8], columns: usize| {
        let mut row = Bytes::new(row);
        // A name need not be text.
        let cells = (0..columns).map(|_| Ok(connection::cell(&mut row)?.unwrap_or_default())).collect::<Result<Vec<_>>>()?;
        names.push(Xid::of_list(&cells).ok_or_else(|| protocol("the name of a prepared transaction cannot be read"))?);
        Ok(())
    };
    connection.query_rows("XA RECOVER", take).await?.map_err(ServerError::into_error)?;
    Ok(names)
}

/// The place of the next transaction at or behind a snapshot. The server counts a file's first events only with the first commit behind them.
async fn behind_empty_events(connection: &mut Connection, spot: &Spot, floor: Mark) -> Result<Mark> {
    let mut spot = spot.clone();
    for _ in 0..MAX_EMPTY {
        if spot.mark() >= floor {
            break;
        }
        let file = crate::connection::literal(&spot.file);
        let rows = connection.query(&format!("SHOW BINLOG EVENTS IN {file} FROM {} LIMIT 1", spot.at)).await?;
        let Some(row) = rows.first() else { break };
        if cell(row, 2) == "Rotate" {
            // `binlog.000002;pos=4`
            let next = cell(row, 5).split(';').next().unwrap_or_default();
            spot = Spot::new(next, 4);
        } else if EMPTY_EVENTS.contains(&cell(row, 2)) {
            let end = cell(row, 4).parse().map_err(|_| protocol("an event's place in the binlog cannot be read"))?;
            if cell(row, 2) == "Stop" {
                // The server ended there, and its next file is the next number.
                spot = Spot::new(&spot.next_file(), 4);
            } else {
                spot.at = end;
            }
        } else {
            break;
        }
    }
    Ok(spot.mark())
}

/// Begins the transaction of a chunk.
pub async fn begin(connection: &mut Connection, gate: Option<&Gate>, trail: &Trail) -> Result<Taken> {
    let gate = gate.and_then(|gate| gate.downcast_ref::<Awaited>());
    match connection.flavour {
        Flavour::Mysql => begin_mysql(connection, gate).await,
        Flavour::Mariadb => begin_mariadb(connection, gate, trail).await,
    }
}

/// Behind everything that the snapshot saw. `gtid_executed` would not do for MySQL: a transaction is visible before it is in it.
pub async fn barrier(connection: &mut Connection, known: Option<Spot>) -> Result<Position> {
    let spot = match known {
        Some(spot) => spot,
        None => inspect::spot(connection).await?,
    };
    let set = match connection.flavour {
        Flavour::Mysql => GtidSet::Mysql(Default::default()),
        Flavour::Mariadb => GtidSet::Maria(Default::default()),
    };
    Ok(Place { set, from: None, partial: None, spot }.to_position())
}
