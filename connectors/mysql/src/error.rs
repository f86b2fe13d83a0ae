//! From the server's error numbers to our kind and code.

use headwater_connector::{Code, Error, codes as shared};

use crate::{
    codes,
    wire::{Cursor, Torn},
};

/// More of a message than this tells nobody anything.
const MAX_TEXT: usize = 1000;

/// What the server says in an ERR packet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServerError {
    /// Stable across versions and languages.
    pub number: u16,
    /// In the server's language.
    pub message: String,
}

impl ServerError {
    /// Reads the packet behind its first byte.
    pub fn parse(body: &[u8]) -> Result<Self, Torn> {
        let mut cursor = Cursor::new(body);
        let number = cursor.u16()?;
        let rest = cursor.rest();
        // A marker and an SQLSTATE, except before the login.
        let text = if rest.first() == Some(&b'#') { rest.get(6..).ok_or(Torn)? } else { rest };
        Ok(Self { number, message: printable(text) })
    }

    /// Message and number, as a fragment.
    pub fn text(&self) -> String {
        format!("the server said \"{}\" ({})", self.message, self.number)
    }

    /// The error as the daemon sees it. Callers with something more precise to say match on `number` first.
    pub fn into_error(self) -> Error {
        let (code, hint) = self.meaning();
        Error::new(code, self.text()).hint(hint)
    }

    fn meaning(&self) -> (&'static Code, &'static str) {
        match self.number {
            1045 | 1044 | 1698 | 1130 | 1862 | 3118 | 4151 => {
                (&codes::LOGIN_REFUSED, "Check user and password, and that the user may log in from this host.")
            }
            1227 | 1142 | 1143 | 1370 => {
                (&codes::PRIVILEGE, "Grant the privilege; `headwater check` prints the exact statement.")
            }
            1040 | 1203 | 1226 | 1129 | 3032 => (&codes::BUSY, "Wait until the server takes connections again."),
            // Shutdown, killed, deadlock, lock timeout, read-only for a moment, out of resources.
            1053 | 1077 | 1079 | 1317 | 1927 | 1205 | 1213 | 1158..=1161 | 1152 | 1184 | 1037 | 1041 | 3024 | 1969 => {
                (&shared::CONNECTION_LOST, "Nothing needs to be done; the connector tries again.")
            }
            // MariaDB has a number of its own for one of the causes.
            1236 | 4052 => from_dump(&self.message),
            _ => (&codes::REFUSED, "Look up the number in the server's manual and remove the cause."),
        }
    }
}

/// One number stands for everything that can go wrong while the server sends its binlog; only the words tell it apart.
fn from_dump(message: &str) -> (&'static Code, &'static str) {
    // Also where this server's mode does not let it send what its files have.
    if ["anonymous transaction", "GTID-transaction", "AUTO_POSITION mode"].iter().any(|part| message.contains(part)) {
        return (&codes::GTID_SWITCHED, "Set gtid_mode in the steps that `headwater explain HW3041` shows.");
    }
    let says = |words: &[&str]| words.iter().any(|words| message.contains(words));
    // It speaks to the one that it hangs up on: whoever came has our names and goes on reading.
    if says(&["with the same server_uuid/server_id", "with the same server_id"]) {
        return (
            &codes::SERVER_ID,
            "End the other one, or give one of the two a `server_id` of its own in the source's options.",
        );
    }
    if says(&["purged", "purge", "Could not find first log file", "too old", "missing"]) {
        (&codes::PURGED, "Restore the binlog files, or begin anew with `headwater reset`.")
    } else if says(&[
        "not in the master's binlog",
        "not in the source's binlog",
        "has diverged",
        "more GTIDs",
        "alternate future",
        "out-of-order",
    ]) {
        (&codes::SERVER_BEHIND, "Connect to the server that has all transactions, or begin anew with `headwater reset`.")
    } else if says(&["max_allowed_packet", "exceeded", "too big"]) {
        (
            &codes::TOO_LARGE,
            "Run SET GLOBAL max_allowed_packet = 1073741824; and restart the connector; no server sends an event above 1 GB: see the page.",
        )
    } else {
        (&shared::CONNECTION_LOST, "Look into the server's log; the connector tries again.")
    }
}

/// A server's words go to logs and terminals: no control characters, and an end.
pub fn printable(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(4 * MAX_TEXT)]);
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MAX_TEXT).collect()
}

/// A message of the server that is not what the protocol prescribes.
pub fn protocol(what: &str) -> Error {
    Error::new(&codes::PROTOCOL, what)
        .hint("Restart the connector; if the error comes back, report it with the server's version.")
}

/// See [`protocol`].
pub fn torn(what: &str) -> Error {
    protocol(&format!("{what} is torn"))
}

/// An open connection that ended.
pub fn lost(what: &str) -> Error {
    Error::new(&shared::CONNECTION_LOST, what).hint("Nothing needs to be done; the connector opens again at its checkpoint.")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// M27: what MariaDB 10.11 and MySQL 8.0 say of an update whose images before and after are above a gigabyte together.
    #[test]
    fn an_event_above_a_gigabyte_is_too_large() {
        for whom in ["master; the first event '.'", "source; the first event ''"] {
            let words =
                format!("log event entry exceeded max_allowed_packet; Increase max_allowed_packet on {whom} at 4, the last ...");
            assert_eq!(from_dump(&words).0.id, "HW3025");
        }
    }

    proptest! {
        #[test]
        fn any_error_packet_is_read_or_refused(body: Vec<u8>) {
            if let Ok(error) = ServerError::parse(&body) {
                let text = error.into_error().to_string();
                prop_assert!(!text.chars().any(char::is_control) && text.len() < 8 * MAX_TEXT);
            }
        }
    }
}
