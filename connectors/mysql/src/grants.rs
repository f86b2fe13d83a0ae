//! What the user may do, by the words of its grants.

use std::collections::BTreeSet;

use headwater_connector::{Error, Finding, Result};

use crate::{
    catalog::cell,
    codes,
    config::Settings,
    connection::{Connection, Flavour, literal},
};

/// Under any of the names that servers have for it.
type Names = &'static [&'static str];

const REPLICATION_SLAVE: Names = &["REPLICATION SLAVE", "REPLICATION REPLICA"];
/// Since 10.5 MariaDB calls it by the first name.
const BINLOG_MONITOR: Names = &["BINLOG MONITOR", "REPLICATION CLIENT"];
const REPLICATION_CLIENT: Names = &["REPLICATION CLIENT"];
const REPLICA_MONITOR: Names = &["REPLICA MONITOR", "SLAVE MONITOR"];

/// The privileges of a user on everything.
pub struct Grants {
    global: BTreeSet<String>,
    /// The user as GRANT wants it.
    account: String,
}

impl Grants {
    /// Asks the server. A role's grants are listed with the user's where the role is on.
    pub async fn of(connection: &mut Connection, settings: &Settings) -> Result<Self> {
        let rows = connection.query("SHOW GRANTS").await?;
        let global = rows.iter().filter_map(|row| on_everything(cell(row, 0))).flatten().collect();
        let user = connection.value("SELECT CURRENT_USER()").await?.unwrap_or_default();
        let (name, host) = user.rsplit_once('@').unwrap_or((&settings.server.user, "%"));
        Ok(Self { global, account: format!("{}@{}", literal(name), literal(host)) })
    }

    fn has(&self, names: Names) -> bool {
        names.iter().chain(&["ALL PRIVILEGES", "ALL"]).any(|name| self.global.contains(*name))
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

/// The privileges of a line that is about everything.
fn on_everything(line: &str) -> Option<Vec<String>> {
    let (privileges, _) = line.strip_prefix("GRANT ")?.split_once(" ON *.* TO ")?;
    Some(privileges.split(',').map(|privilege| privilege.trim().to_ascii_uppercase()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grants(lines: &[&str]) -> Grants {
        let global = lines.iter().filter_map(|line| on_everything(line)).flatten().collect();
        Grants { global, account: "'u'@'%'".into() }
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
