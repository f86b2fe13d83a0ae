//! Whether a position can be resumed on a server: it must have everything that is published, must not have deleted what is not, and must
//! not have forgotten its past (start rule 1.5(5)).

use std::time::Duration;

use headwater_connector::{Error, Identity, Result};

use crate::{
    catalog::cell,
    codes,
    connection::{Connection, Flavour, Rows, literal},
    dump,
    gtid::{FilePlace, GtidSet},
    inspect,
    position::{Place, Spot},
    server::Server,
    stops,
};

/// A file is read up to a place to find what was written before it; it may be as large as its largest transaction.
const SCAN: Duration = Duration::from_secs(600);

/// Whether the position can be resumed on this server, which is `found`.
pub async fn require(connection: &mut Connection, server: &Server, place: &Place, found: &Identity) -> Result<()> {
    if place.is_of_files() {
        return require_file(connection, place).await;
    }
    if !inspect::has_names(connection).await? {
        return Err(Error::new(&codes::GTID_SWITCHED, "the server gives transactions no GTIDs any more")
            .hint("Run SET GLOBAL gtid_mode = ON; in the steps that `headwater explain HW3041` shows."));
    }
    let is_same = place.spot.owner == Spot::owner_of(found);
    let (has, _) = inspect::end(connection).await?;
    if !has.covers(&place.set) {
        return Err(lacking(place, &has, is_same));
    }
    if connection.flavour == Flavour::Mysql {
        let purged = inspect::gtids(connection, "gtid_purged").await?;
        if !place.set.covers(&purged) {
            return Err(Error::new(&codes::PURGED, "the server has deleted binlog that was not read")
                .at("published", &place.set)
                .at("purged", &purged)
                .hint("Connect to a server that still has it, or begin anew with `headwater reset`."));
        }
        if is_same {
            require_unforgotten(connection, server, &place.spot).await?;
        }
    }
    Ok(())
}

/// Why a server lacks transactions: it forgot them itself, has not got them yet, or took another way.
fn lacking(place: &Place, has: &GtidSet, is_same: bool) -> Error {
    let error = if is_same {
        Error::new(&codes::FORGOTTEN, "the server itself wrote what is published, and does not have it any more")
            .hint("Find out whether it was reset, restored or crashed; then begin anew with `headwater reset`.")
    } else if place.set.covers(has) {
        Error::new(&codes::SERVER_BEHIND, "the server lacks transactions that are published")
            .hint("Connect to the server that has them, or wait until this one has caught up and restart the connector.")
    } else {
        Error::new(&codes::DIVERGED, "the server lacks transactions that are published, and has others instead")
            .hint("Connect to the server that has the published ones; if they are gone, begin anew with `headwater reset`.")
    };
    error.at("published", &place.set).at("server", has)
}

/// A server whose binlog was reset counts its transactions from one on again: what it writes then has the names of what is published,
/// and would be passed over. Its files are others.
async fn require_unforgotten(connection: &mut Connection, server: &Server, spot: &Spot) -> Result<()> {
    let files = connection.query("SHOW BINARY LOGS").await?;
    let is_other = match size_of(&files, &spot.file) {
        Some(size) if size < spot.at => true,
        Some(_) if spot.born == 0 => false,
        Some(_) => dump::born(Connection::open(server).await?, &spot.file).await? != spot.born,
        None => is_ahead(&files, spot),
    };
    if !is_other {
        return Ok(());
    }
    Err(Error::new(&codes::FORGOTTEN, "the binlog of the server is not the one that was read: it was reset or restored")
        .at("file", &spot.file)
        .at("place", spot.at)
        .hint("Begin anew with `headwater reset`."))
}

/// Bytes of a file that the server lists.
fn size_of(files: &Rows, name: &str) -> Option<u64> {
    files.iter().find(|row| cell(row, 0) == name).map(|row| cell(row, 1).parse().unwrap_or(0))
}

/// Whether a file would come behind all that the server has. Files of another name say nothing: an operator can rename them.
fn is_ahead(files: &Rows, spot: &Spot) -> bool {
    let stem = |name: &str| name.rsplit_once('.').map(|(stem, _)| stem.to_owned());
    files.last().is_some_and(|newest| {
        let newest = Spot::new(cell(newest, 0), 0);
        stem(&newest.file) == stem(&spot.file) && newest.mark().file < spot.mark().file
    })
}

/// Whether the file of a position is there, and long enough.
async fn require_file(connection: &mut Connection, place: &Place) -> Result<()> {
    let Spot { file, at, .. } = &place.spot;
    let files = connection.query("SHOW BINARY LOGS").await?;
    let size = size_of(&files, file);
    let first = files.first().and_then(|row| FilePlace::new(cell(row, 0), 0));
    let is_gone = size.is_none() && first.is_some_and(|first| GtidSet::Places(first).covers(&place.set));
    let (code, what) = match size {
        Some(size) if size >= *at => return Ok(()),
        _ if is_gone => (&codes::PURGED, "the server has deleted binlog that was not read"),
        _ => (&codes::FORGOTTEN, "the binlog of the server is not the one that was read: it was reset or restored"),
    };
    let error = Error::new(code, what).at("file", file).at("place", at);
    Err(error.hint("Connect to the server that has the file, or begin anew with `headwater reset`."))
}

/// Looks the last published transactions of a MariaDB up where they were read, as long as that file exists. It reads the file up to
/// there, so this is for the start only.
pub async fn require_recorded(connection: &mut Connection, place: &Place) -> Result<()> {
    let files = connection.query("SHOW BINARY LOGS").await?;
    let is_same = match size_of(&files, &place.spot.file) {
        Some(_) => recorded(connection, &place.spot).await?.is_some_and(|set| set == place.set),
        None => !is_ahead(&files, &place.spot),
    };
    if is_same { Ok(()) } else { Err(stops::other_server(&place.spot)) }
}

/// What a MariaDB server has up to a place of its binlog; none if there is no such place.
pub async fn recorded(connection: &mut Connection, spot: &Spot) -> Result<Option<GtidSet>> {
    let sql = format!("SELECT BINLOG_GTID_POS({}, {})", literal(&spot.file), spot.at);
    let text = connection.value_within(&sql, SCAN).await?;
    Ok(text.and_then(|text| GtidSet::parse_maria(&text)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_behind_the_newest_is_of_another_history_and_one_before_the_oldest_was_deleted() {
        let files: Rows = ["b.000004", "b.000005"].map(|name| vec![Some(name.to_owned()), Some("100".to_owned())]).into();
        let spot = |file: &str| Spot::new(file, 4);
        assert!(is_ahead(&files, &spot("b.000006")) && !is_ahead(&files, &spot("b.000003")));
        assert!(!is_ahead(&files, &spot("renamed.000006")), "an operator named the files anew");
        assert!(!is_ahead(&Vec::new(), &spot("b.000001")));
        assert_eq!((size_of(&files, "b.000004"), size_of(&files, "b.000003")), (Some(100), None));
    }
}
