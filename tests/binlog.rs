//! MariaDB and MySQL under the daemon. That no kill loses or repeats anything is shown in [`kill`](crate::kill).

#[allow(dead_code, unused_macros)]
#[path = "../connectors/mysql/tests/servers/support.rs"]
pub mod servers;

mod rows;
