//! Named stops of the stream: what came, where, and what to do about it.

use headwater_connector::Error;

use crate::{
    codes,
    error::torn,
    omitted::Reach,
    payload::Bad,
    position::{Partial, Spot},
};

fn at_spot(error: Error, spot: &Spot) -> Error {
    error.at("file", &spot.file).at("place", spot.at)
}

/// An event does not have its checksum.
pub fn checksum(spot: &Spot) -> Error {
    at_spot(Error::new(&codes::CHECKSUM, "an event does not have its checksum"), spot)
        .hint("Nothing needs to be done unless it comes back; `headwater explain HW3028` has more.")
}

/// Something compressed cannot be unpacked.
pub fn packed(bad: Bad, limit: usize) -> Error {
    match bad {
        Bad::Torn => torn("something compressed"),
        Bad::TooLarge => too_large(limit),
        Bad::Method => Error::new(&codes::UNKNOWN_EVENT, "an event is compressed by a method that is not known")
            .hint("Upgrade headwater; `headwater explain HW3019` has more."),
    }
}

/// A place that the protocol has no number for.
pub fn too_far(spot: &Spot) -> Error {
    at_spot(Error::new(&codes::TOO_LARGE, "a file without GTIDs cannot be read on behind 4 GiB"), spot)
        .hint("Begin anew with `headwater reset`; with gtid_mode = ON there is no such limit.")
}

/// An event is larger than it may be.
pub fn too_large(limit: usize) -> Error {
    Error::new(&codes::TOO_LARGE, format!("an event is larger than {limit} bytes"))
        .hint("Raise `max_event_bytes` in the source's options; the connector may need as much memory.")
}

/// Transactions without names, where the position is made of names.
pub fn anonymous(spot: &Spot) -> Error {
    at_spot(Error::new(&codes::GTID_SWITCHED, "a transaction has no GTID, and the position is made of GTIDs"), spot)
        .hint("Run SET GLOBAL gtid_mode = ON; in the steps that `headwater explain HW3041` shows.")
}

/// Rows that are in tables already, on a server without GTIDs.
pub fn backfill_without_names() -> Error {
    Error::new(&codes::BACKFILL_TABLE, "without GTIDs nothing tells which changes a row that is read includes, so no table is read")
        .hint("Set `backfill: never` to have changes only, or run SET GLOBAL gtid_mode = ON; in the steps of `headwater explain HW3009`.")
}

/// A prepared transaction where a restart could not have it sent again.
pub fn prepared_in_files(transaction: &str) -> Error {
    Error::new(&codes::XA, "rows of a selected table were prepared on a server without GTIDs")
        .at("transaction", transaction)
        .hint("Run SET GLOBAL gtid_mode = ON; in the steps that `headwater explain HW3009` shows, then begin anew with `headwater reset`.")
}

/// The file of the position is another one on this server.
pub fn other_server(spot: &Spot) -> Error {
    at_spot(
        Error::new(
            &codes::OTHER_SOURCE,
            "the server is not the one of the checkpoint: its binlog differs where it was read last",
        ),
        spot,
    )
    .hint("Set `url` back; if this server took the place of the other, run `headwater reset` with --rebind.")
}

/// The server lost something.
pub fn incident(spot: &Spot) -> Error {
    at_spot(Error::new(&codes::INCIDENT, "the server says that its binlog lacks changes"), spot)
        .hint("Look into the server's error log, then begin anew with `headwater reset`.")
}

/// An event that nobody here knows.
pub fn unknown(kind: u8, spot: &Spot) -> Error {
    at_spot(Error::new(&codes::UNKNOWN_EVENT, format!("the binlog holds an event of kind {kind}")), spot)
        .hint("Upgrade headwater; `headwater explain HW3019` has more.")
}

/// A statement that changes rows of a selected table, or may do so.
pub fn statement(table: Option<&str>, spot: &Spot) -> Error {
    let what = match table {
        Some(_) => "the binlog holds a statement that changes rows of a selected table, and not the rows",
        None => "the binlog holds a statement that may change rows of a selected table",
    };
    let error = at_spot(Error::new(&codes::STATEMENT, what), spot);
    let error = match table {
        Some(table) => error.at("table", table),
        None => error,
    };
    error.hint("Run SET GLOBAL binlog_format = 'ROW'; and let no session set another; then begin anew with `headwater reset`.")
}

/// A statement on a table that is not selected, of which it cannot be said that it changes no other one.
pub fn unclear(table: &str, reach: &Reach, spot: &Spot) -> Error {
    let error = match reach {
        Reach::Unseen { grant } => {
            let error = statement(None, spot).at("why", "the user cannot see whether the table has triggers or what are views");
            error.hint(format!(
                "Run {grant} and restart the connector. If it stops here again, run SET GLOBAL binlog_format = 'ROW'; and begin anew \
                 with `headwater reset`."
            ))
        }
        Reach::Others(why) => statement(None, spot).at("why", why),
        Reach::Nothing => statement(None, spot),
    };
    error.at("of", table)
}

/// Rows that came into a table or left it without being in the binlog.
pub fn moved(table: &str, spot: &Spot) -> Error {
    at_spot(
        Error::new(
            &codes::STATEMENT,
            "ALTER TABLE moved rows into or out of a selected table, and the binlog does not hold them",
        ),
        spot,
    )
    .at("table", table)
    .hint("Begin anew with `headwater reset`, or take the table out of `tables`; `headwater explain HW3020` has more.")
}

/// An image without all columns.
pub fn image(table: &str, transaction: &str) -> Error {
    Error::new(&codes::ROW_IMAGE, "the binlog holds a row without all of its columns")
        .at("table", table)
        .at("transaction", transaction)
        .hint("Run SET GLOBAL binlog_row_image = 'FULL'; and let no session set another; then begin anew with `headwater reset`.")
}

/// The commit of a transaction that was prepared before the start.
pub fn prepared(transaction: &str) -> Error {
    Error::new(&codes::XA, "a transaction was committed that was prepared before the connector's start")
        .at("transaction", transaction)
        .hint("Wait until XA RECOVER; lists nothing that is older, then begin anew with `headwater reset`.")
}

/// More rows are prepared than may be held.
pub fn held(transaction: &str, limit: usize) -> Error {
    Error::new(&codes::XA, format!("prepared transactions have more than {limit} bytes of rows"))
        .at("transaction", transaction)
        .hint("Commit or roll back what XA RECOVER; lists, or change selected tables without XA; `headwater explain HW3026` has more.")
}

/// A transaction that is published in part, and never happened.
pub fn rolled_back(transaction: &str) -> Error {
    Error::new(&codes::ROLLED_BACK, "a transaction was rolled back of which rows are published or held")
        .at("transaction", transaction)
        .hint("Begin anew with `headwater reset`; `headwater explain HW3038` tells how to keep it from coming back.")
}

/// The policy of truncates.
pub fn truncated(table: &str, transaction: &str) -> Error {
    Error::new(&codes::TRUNCATE_STOPPED, "a table was truncated")
        .at("table", table)
        .at("transaction", transaction)
        .hint("Set `on_truncate: event` to let truncates pass as events of their own, or take the table out of `tables`.")
}

/// The policy of partitions.
pub fn partitions(table: &str, names: &str, transaction: &str) -> Error {
    Error::new(&codes::TRUNCATE_STOPPED, "partitions left a table, and the binlog does not hold their rows")
        .at("table", table)
        .at("partitions", names)
        .at("transaction", transaction)
        .hint("Set `on_partition_drop: ignore` to go on and leave their rows in the topic, or take the table out of `tables`.")
}

/// A date that is none.
pub fn zero_date(table: &str, column: &str, transaction: &str) -> Error {
    Error::new(&codes::ZERO_DATE, "a date has a zero as year, month or day")
        .at("table", table)
        .at("column", column)
        .at("transaction", transaction)
        .hint(
            "Set `zero_dates: text`, or `zero_dates: null` where it is in no key, or correct the row and restart the connector.",
        )
}

/// The rest of a cut transaction does not come.
pub fn mismatch(partial: Partial, came: &str) -> Error {
    Error::new(&codes::PARTIAL_MISMATCH, format!("the server sent {came} instead of the rest of a transaction"))
        .at("transaction", partial.gtid)
        .hint("Connect to the server that has the transaction, or begin anew with `headwater reset`.")
}
