//! MariaDB and MySQL under the daemon. That no kill loses or repeats anything is shown in [`kill`](crate::kill).

#[allow(dead_code, unused_macros)]
#[path = "../connectors/mysql/tests/servers/support.rs"]
pub mod servers;

mod files;
mod huge;
mod privileges;
mod rows;
mod standing;

use servers::Server;

/// The lines of a source's server. Daemons of the same configuration on one server would end each other's connection, as two of the tests
/// did that ran at the same time: each is a replica of its own.
fn place(server: &Server, database: &str) -> String {
    let number: u32 = database.trim_start_matches('d').parse().expect("the number of a database");
    format!("      url: {}\n      server_id: {}\n", server.url(), 1000 + number)
}
