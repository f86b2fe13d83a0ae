//! How long the server keeps its binlog. It does so by its own rules, read or not.

use headwater_connector::{Error, Finding, Result};

use crate::{catalog::cell, codes, connection::Connection};

/// A connector should be able to stand still over a long weekend.
const SHORT_S: u64 = 3 * 86_400;

const VARIABLES: &str = "SHOW GLOBAL VARIABLES WHERE Variable_name IN \
    ('binlog_expire_logs_seconds', 'expire_logs_days', 'binlog_expire_logs_auto_purge', 'max_binlog_total_size')";

/// The server's rules.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// A file is deleted when it was written last so many seconds ago; none if age does not matter.
    pub seconds: Option<u64>,
    /// The oldest files are deleted when all have so many bytes together; none if size does not matter.
    pub bytes: Option<u64>,
}

impl Rules {
    /// Asks the server.
    pub async fn of(connection: &mut Connection) -> Result<Self> {
        let rows = connection.query(VARIABLES).await?;
        Ok(Self::read(&rows.iter().map(|row| (cell(row, 0), cell(row, 1))).collect::<Vec<_>>()))
    }

    fn read(variables: &[(&str, &str)]) -> Self {
        let value = |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| *value);
        // Days can be a fraction on MariaDB.
        let number = |name: &str| value(name).and_then(|text| text.parse::<f64>().ok()).filter(|number| *number > 0.0);
        // Newer MySQL can be told to delete nothing by age; the others do not know the word.
        let is_off = value("binlog_expire_logs_auto_purge").is_some_and(|text| matches!(text, "OFF" | "0"));
        // The older setting counts where the newer one is 0 or not known.
        let seconds = number("binlog_expire_logs_seconds").or(number("expire_logs_days").map(|days| days * 86_400.0));
        Self {
            seconds: seconds.filter(|_| !is_off).map(|seconds| seconds as u64),
            bytes: number("max_binlog_total_size").map(|bytes| bytes as u64),
        }
    }

    /// What a connector that stands still has to expect.
    pub fn findings(self) -> Vec<Finding> {
        let mut found = Vec::new();
        match self.seconds {
            Some(seconds) if seconds < SHORT_S => found.push(Finding::warning(
                Error::new(&codes::RETENTION, format!("a connector that stands still for {seconds} s loses its place"))
                    .hint("Run SET GLOBAL binlog_expire_logs_seconds = 604800; and put it into the server's configuration."),
            )),
            Some(seconds) => found.push(Finding::ok(format!("the server keeps its binlog for {} hours", seconds / 3600))),
            None => {}
        }
        if let Some(bytes) = self.bytes {
            found.push(Finding::warning(
                Error::new(&codes::RETENTION, format!("the server deletes its oldest binlog beyond {bytes} bytes, however young it is"))
                    .hint("Run SET GLOBAL max_binlog_total_size = 0; or give it what is written in a week, and put it into the server's configuration."),
            ));
        }
        if found.is_empty() {
            found.push(Finding::ok("the server keeps its binlog until somebody deletes it"));
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rule_that_is_in_force_counts() {
        let seconds = |variables: &[(&str, &str)]| Rules::read(variables).seconds;
        assert_eq!(seconds(&[("binlog_expire_logs_seconds", "3600"), ("expire_logs_days", "7")]), Some(3600));
        assert_eq!(seconds(&[("binlog_expire_logs_seconds", "0"), ("expire_logs_days", "7")]), Some(604_800));
        assert_eq!(seconds(&[("binlog_expire_logs_seconds", "3600"), ("expire_logs_days", "0.041667")]), Some(3600));
        assert_eq!(seconds(&[("binlog_expire_logs_seconds", "3600"), ("binlog_expire_logs_auto_purge", "OFF")]), None);
        assert_eq!(seconds(&[("binlog_expire_logs_seconds", "3600"), ("binlog_expire_logs_auto_purge", "ON")]), Some(3600));
        assert_eq!(seconds(&[("binlog_expire_logs_seconds", "0")]), None);
        assert_eq!(Rules::read(&[("max_binlog_total_size", "1048576")]).bytes, Some(1 << 20));
    }

    #[test]
    fn a_short_time_and_a_size_are_warned_of() {
        let said =
            |seconds, bytes| Rules { seconds, bytes }.findings().into_iter().filter(|finding| finding.error.is_some()).count();
        assert_eq!(said(None, None), 0);
        assert_eq!(said(Some(SHORT_S), None), 0);
        assert_eq!(said(Some(SHORT_S - 1), None), 1);
        assert_eq!(said(Some(SHORT_S), Some(1)), 1, "age does not matter where size does");
    }
}
