//! What the server says of itself: who it is, what it has, and whether it writes what is needed.

use headwater_connector::{Error, Identity, Result};

use crate::{
    catalog::cell,
    codes,
    config::Settings,
    connection::{Connection, Flavour},
    error::protocol,
    gtid::{FilePlace, GtidSet},
    history,
    position::{Place, Spot},
};

/// Who the server is.
pub async fn identity(connection: &mut Connection) -> Result<Identity> {
    let mut identity = Identity::from([("flavour", connection.flavour.name())]);
    // MariaDB has none in older versions.
    let sql = match connection.flavour {
        Flavour::Mysql => "SELECT @@server_uuid",
        Flavour::Mariadb => "SELECT VARIABLE_VALUE FROM information_schema.GLOBAL_VARIABLES WHERE VARIABLE_NAME = 'SERVER_UID'",
    };
    if let Some(uuid) = connection.value(sql).await?.filter(|uuid| !uuid.is_empty()) {
        identity.0.insert("server_uuid".to_owned(), uuid);
    }
    if let Some(id) = connection.value("SELECT @@server_id").await? {
        identity.0.insert("server_id".to_owned(), id);
    }
    Ok(identity)
}

/// There if positions are places in files.
const FILES: &str = "files";
/// Where an operator accepted a server: the place of the position then.
const ACCEPTED: &str = "accepted";

/// Refuses another flavour: its positions mean something else.
pub fn require_flavour(stored: &Identity, found: &Identity) -> Result<()> {
    match (stored.get("flavour"), found.get("flavour")) {
        (Some(stored), Some(found)) if stored != found => {
            Err(Error::new(&codes::OTHER_SOURCE, format!("the checkpoint is of a {stored} server, and a {found} server answers"))
                .hint("Set `url` back, or use another connector; `headwater reset` begins this one anew."))
        }
        _ => Ok(()),
    }
}

/// Refuses another flavour, and another server where it says who it is and its transactions do not: the names of MySQL's have the
/// server in them, if they have names, and those of two MariaDB servers can be alike by chance.
pub fn require_same(stored: &Identity, found: &Identity) -> Result<()> {
    require_flavour(stored, found)?;
    if stored.get(FILES).is_none() && found.get("flavour") != Some(Flavour::Mariadb.name()) {
        return Ok(());
    }
    match (stored.get("server_uuid"), found.get("server_uuid")) {
        (Some(stored), Some(now)) if stored != now => {
            Err(Error::new(&codes::OTHER_SOURCE, "the server is not the one of the checkpoint")
                .at("checkpoint", stored)
                .at("server", now)
                .hint(
                    "Set `url` back; if it is a MariaDB that took the place of the other, run `headwater reset` with --rebind.",
                ))
        }
        _ => Ok(()),
    }
}

/// What an operator may accept: another MariaDB, but for places in files no other server.
pub fn may_accept(stored: &Identity, found: &Identity) -> Result<()> {
    if stored.get(FILES).is_some() { require_same(stored, found) } else { require_flavour(stored, found) }
}

/// Notes that a position is a place in the files of this very server.
pub fn bind(mut found: Identity, place: &Place) -> Identity {
    if place.is_of_files() {
        found.0.insert(FILES.to_owned(), "only".to_owned());
    }
    found
}

/// The identity of a server that an operator accepts for a position, whoever wrote it.
pub fn accept(mut found: Identity, place: &Place) -> Identity {
    if matches!(place.set, GtidSet::Maria(_)) {
        found.0.insert(ACCEPTED.to_owned(), format!("{}:{}", place.spot.file, place.spot.at));
    }
    found
}

/// Whether the place of the position must be this server's own: on MariaDB, unless an operator said otherwise of this very place.
pub fn is_bound(stored: &Identity, place: &Place) -> bool {
    let is_maria = matches!(place.set, GtidSet::Maria(_));
    is_maria && stored.get(ACCEPTED) != Some(format!("{}:{}", place.spot.file, place.spot.at).as_str())
}

/// Whether a MySQL server names its transactions.
pub async fn has_names(connection: &mut Connection) -> Result<bool> {
    if connection.flavour == Flavour::Mariadb {
        return Ok(true);
    }
    Ok(connection.value("SELECT @@global.gtid_mode").await?.as_deref() == Some("ON"))
}

/// The set of everything up to a place.
pub fn up_to(spot: &Spot) -> Option<GtidSet> {
    FilePlace::new(&spot.file, spot.at).map(GtidSet::Places)
}

/// Where a first start begins. Without names it is a place in the server's files. On MariaDB the set is that of the place, so that it is found there again.
pub async fn begin(connection: &mut Connection) -> Result<(GtidSet, Spot)> {
    let (set, spot) = end(connection).await?;
    if connection.flavour == Flavour::Mariadb {
        return Ok((history::recorded(connection, &spot).await?.unwrap_or(set), spot));
    }
    if has_names(connection).await? {
        return Ok((set, spot));
    }
    Ok((up_to(&spot).ok_or_else(|| protocol("the name of a file has no number"))?, spot))
}

/// Everything that the server has committed, and where its binlog ends; the place is not behind the transactions.
pub async fn end(connection: &mut Connection) -> Result<(GtidSet, Spot)> {
    let spot = spot(connection).await?;
    let set = match connection.flavour {
        Flavour::Mysql => gtids(connection, "gtid_executed").await?,
        Flavour::Mariadb => gtids(connection, "gtid_binlog_pos").await?,
    };
    Ok((set, spot))
}

/// Where the server's binlog ends.
pub async fn spot(connection: &mut Connection) -> Result<Spot> {
    // 8.4 has another word for it, and forgot the old one.
    let is_new = connection.flavour == Flavour::Mysql && connection.version >= (8, 2);
    let rows = connection.query(if is_new { "SHOW BINARY LOG STATUS" } else { "SHOW MASTER STATUS" }).await?;
    let Some(row) = rows.first() else { return Err(no_binlog()) };
    Ok(Spot::new(cell(row, 0), cell(row, 1).parse().unwrap_or(4)))
}

/// The set in a global variable.
pub async fn gtids(connection: &mut Connection, variable: &str) -> Result<GtidSet> {
    let text = connection.value(&format!("SELECT @@global.{variable}")).await?.unwrap_or_default();
    let set = match connection.flavour {
        Flavour::Mysql => GtidSet::parse_mysql(&text),
        Flavour::Mariadb => GtidSet::parse_maria(&text),
    };
    set.ok_or_else(|| protocol("a set of transactions cannot be read"))
}

fn no_binlog() -> Error {
    Error::new(&codes::BINLOG_OFF, "the server writes no binlog")
        .hint("Put log_bin = binlog into the server's configuration and restart it.")
}

/// What the server must be set to, and is not. Each comes with the exact statement.
pub async fn faults(connection: &mut Connection, settings: &Settings) -> Result<Vec<Error>> {
    let mut faults = Vec::new();
    let mut expect =
        |found: Option<String>, name: &str, wanted: &str, code| {
            let found = found.unwrap_or_default();
            if !found.eq_ignore_ascii_case(wanted) {
                let what = if found.is_empty() { format!("the server has no {name}") } else { format!("{name} is {found}") };
                faults.push(Error::new(code, what).hint(format!(
                    "Run SET GLOBAL {name} = '{wanted}'; and put {name} = {wanted} into the server's configuration."
                )));
            }
        };
    let log_bin = connection.value("SELECT @@log_bin").await?;
    if log_bin.as_deref() != Some("1") {
        return Ok(vec![no_binlog()]);
    }
    for (name, wanted, code) in [
        ("binlog_format", "ROW", &codes::BINLOG_OFF),
        ("binlog_row_image", "FULL", &codes::ROW_IMAGE),
        ("binlog_row_metadata", "FULL", &codes::METADATA),
    ] {
        let found = connection.value(&format!("SELECT @@global.{name}")).await?;
        expect(found, name, wanted, code);
    }
    let own = connection.value("SELECT @@server_id").await?;
    if own.as_deref() == Some(settings.server_id.to_string().as_str()) {
        faults.push(server_id_taken(settings.server_id));
    }
    Ok(faults)
}

/// Somebody else has our number.
pub fn server_id_taken(id: u32) -> Error {
    Error::new(&codes::SERVER_ID, format!("server id {id} is taken"))
        .hint("Set `server_id` in the source's options to a number that neither the server nor a replica has.")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_mariadb_is_refused_by_its_uid_and_another_mysql_is_not() {
        for (flavour, is_refused) in [("mariadb", true), ("mysql", false)] {
            let identity = |uid| Identity::from([("flavour", flavour), ("server_uuid", uid)]);
            assert!(require_same(&identity("a"), &identity("a")).is_ok());
            assert_eq!(require_same(&identity("a"), &identity("b")).is_err(), is_refused, "{flavour}");
            assert!(require_same(&Identity::from([("flavour", flavour)]), &identity("b")).is_ok(), "older servers say nothing");
        }
        let of = |flavour| Identity::from([("flavour", flavour)]);
        assert!(require_same(&of("mysql"), &of("mariadb")).is_err());
    }

    #[test]
    fn an_accepted_server_is_accepted_for_that_place_only() {
        let place = |at| Place {
            set: GtidSet::parse_maria("0-1-5").expect("a set"),
            from: None,
            partial: None,
            spot: Spot::new("binlog.000002", at),
        };
        let found = accept(Identity::from([("flavour", "mariadb")]), &place(77));
        assert!(!is_bound(&found, &place(77)));
        assert!(is_bound(&found, &place(78)));
        let of_mysql = Place { set: GtidSet::parse_mysql("").expect("a set"), ..place(77) };
        assert!(!is_bound(&found, &of_mysql), "the names of its transactions are enough");
    }
}
