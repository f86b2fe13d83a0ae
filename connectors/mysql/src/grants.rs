//! What the user may do, by the words of its grants.

use std::collections::BTreeSet;

use headwater_connector::{Error, Finding, Result};

use crate::{
    catalog::cell,
    codes,
    connection::{Connection, Flavour, ident, literal},
};

/// Under any of the names that servers have for it.
type Names = &'static [&'static str];

const REPLICATION_SLAVE: Names = &["REPLICATION SLAVE", "REPLICATION REPLICA"];
/// Since 10.5 MariaDB calls it by the first name.
const BINLOG_MONITOR: Names = &["BINLOG MONITOR", "REPLICATION CLIENT"];
const REPLICATION_CLIENT: Names = &["REPLICATION CLIENT"];
const REPLICA_MONITOR: Names = &["REPLICA MONITOR", "SLAVE MONITOR"];

/// Privileges by their whole names.
type Privileges = BTreeSet<String>;

/// The privileges of a user on everything, and on whole databases.
pub struct Grants {
    global: Privileges,
    databases: Vec<(String, Privileges)>,
    /// Whether something was taken out of the privileges on everything.
    has_holes: bool,
    /// The user as GRANT wants it.
    account: String,
}

impl Grants {
    /// Asks the server. A role's grants are listed with the user's where the role is on.
    pub async fn of(connection: &mut Connection) -> Result<Self> {
        let rows = connection.query("SHOW GRANTS").await?;
        let user = connection.value("SELECT CURRENT_USER()").await?.unwrap_or_default();
        Ok(Self::parse(rows.iter().map(|row| cell(row, 0)), &user))
    }

    fn parse<'a>(lines: impl Iterator<Item = &'a str>, user: &str) -> Self {
        let (name, host) = user.rsplit_once('@').unwrap_or((user, "%"));
        let account = format!("{}@{}", literal(name), literal(host));
        let mut grants = Self { global: Privileges::new(), databases: Vec::new(), has_holes: false, account };
        for line in lines {
            grants.has_holes |= line.starts_with("REVOKE ");
            match scope(line) {
                Some((privileges, None)) => grants.global.extend(privileges),
                Some((privileges, Some(database))) => grants.databases.push((database, privileges)),
                None => {}
            }
        }
        grants
    }

    fn has(&self, names: Names) -> bool {
        names.iter().any(|name| is_in(&self.global, name))
    }

    /// Whether a privilege holds for all of a database.
    pub fn has_in(&self, privilege: &str, database: &str) -> bool {
        !self.has_holes && is_in(&self.global, privilege)
            || self.databases.iter().any(|(of, privileges)| of == database && is_in(privileges, privilege))
    }

    /// The statement that gives a privilege in a database.
    pub fn grant_in(&self, privileges: &str, database: &str) -> String {
        format!("GRANT {privileges} ON {}.* TO {};", ident(database), self.account)
    }

    /// The statement that gives a privilege.
    pub fn grant(&self, privileges: &str) -> String {
        format!("GRANT {privileges} ON *.* TO {};", self.account)
    }

    /// Whether the binlog can be read, and what cannot be looked at before.
    pub fn findings(&self, flavour: Flavour) -> Vec<Finding> {
        let needed = match flavour {
            Flavour::Mysql => [REPLICATION_SLAVE, REPLICATION_CLIENT],
            Flavour::Mariadb => [REPLICATION_SLAVE, BINLOG_MONITOR],
        };
        let missing: Vec<&str> = needed.into_iter().filter(|names| !self.has(names)).map(|names| names[0]).collect();
        let mut found = vec![match missing.is_empty() {
            true => Finding::ok("the user may read the binlog"),
            false => Finding::error(
                Error::new(&codes::PRIVILEGE, format!("the user lacks {}", missing.join(" and ")))
                    .hint(format!("Run {}", self.grant(&missing.join(", ")))),
            ),
        }];
        if flavour == Flavour::Mariadb && !self.has(REPLICA_MONITOR) {
            found.push(self.unseen("whether the server is a replica that is stopped, and what it leaves out", "REPLICA MONITOR"));
        }
        found
    }

    /// Something that the user may not look at.
    pub fn unseen(&self, what: &str, privilege: &str) -> Finding {
        Finding::warning(
            Error::new(&codes::UNSEEN, format!("it cannot be seen {what}"))
                .hint(format!("Run {} to have it looked at; nothing else needs it.", self.grant(privilege))),
        )
    }
}

fn is_in(privileges: &Privileges, name: &str) -> bool {
    [name, "ALL PRIVILEGES", "ALL"].iter().any(|name| privileges.contains(*name))
}

/// The privileges of a line, and the database that they are for; no database stands for all. None where the line is about less.
fn scope(line: &str) -> Option<(Privileges, Option<String>)> {
    let (privileges, rest) = line.strip_prefix("GRANT ")?.split_once(" ON ")?;
    let privileges = privileges.split(',').map(|privilege| privilege.trim().to_ascii_uppercase()).collect();
    if rest.starts_with("*.* TO ") {
        return Some((privileges, None));
    }
    let (database, _) = rest.split_once(".* TO ")?;
    // A letter that stands for others is written with a backslash where it does not.
    Some((privileges, Some(database.trim_matches('`').replace("``", "`").replace('\\', ""))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grants(lines: &[&str]) -> Grants {
        Grants::parse(lines.iter().copied(), "u@%")
    }

    #[test]
    fn a_grant_counts_for_its_databases_only() {
        let found = grants(&[
            "GRANT USAGE, REPLICATION SLAVE ON *.* TO `hw`@`%` IDENTIFIED BY PASSWORD '*12 ON *.* TO '",
            "GRANT SELECT, TRIGGER ON `a\\_b`.* TO `hw`@`%`",
            "GRANT ALL PRIVILEGES ON `c``d`.* TO `hw`@`%` WITH GRANT OPTION",
            "GRANT SELECT ON `e`.`t` TO `hw`@`%`",
            "GRANT SELECT (`a`), TRIGGER (`b`) ON `f`.`t` TO `hw`@`%`",
            "GRANT `some`@`%` TO `hw`@`%`",
        ]);
        for (database, sees) in [("a_b", true), ("axb", false), ("c`d", true), ("e", false), ("f", false), ("mysql", false)] {
            assert_eq!(found.has_in("SELECT", database) && found.has_in("TRIGGER", database), sees, "{database}");
        }
        assert_eq!(found.grant_in("SELECT", "e"), "GRANT SELECT ON `e`.* TO 'u'@'%';");
        let all = ["GRANT SELECT, TRIGGER ON *.* TO `hw`@`%`", "REVOKE SELECT ON `x`.* FROM `hw`@`%`"];
        assert!(grants(&all[..1]).has_in("TRIGGER", "any"));
        assert!(!grants(&all).has_in("SELECT", "any"));
    }

    /// `REPLICATION SLAVE ADMIN` has the letters of `REPLICATION SLAVE`, and does not let a user read the binlog.
    #[test]
    fn a_privilege_counts_by_its_whole_name() {
        let found = grants(&[
            "GRANT REPLICATION SLAVE ADMIN, BINLOG MONITOR ON *.* TO `u`@`%` IDENTIFIED BY PASSWORD '*A, REPLICATION SLAVE'",
            "GRANT REPLICATION SLAVE ON `shop`.* TO `u`@`%`",
        ]);
        assert!(!found.has(REPLICATION_SLAVE) && found.has(BINLOG_MONITOR));
        let said = found.findings(Flavour::Mariadb);
        assert_eq!(said[0].what, "the user lacks REPLICATION SLAVE");
        assert!(
            said[1].error.as_ref().is_some_and(|error| error.hint_text().contains("GRANT REPLICA MONITOR ON *.* TO 'u'@'%';"))
        );
        let all = grants(&["GRANT ALL PRIVILEGES ON *.* TO `u`@`%` WITH GRANT OPTION"]);
        assert!(all.findings(Flavour::Mariadb).iter().all(|finding| finding.error.is_none()));
    }
}
