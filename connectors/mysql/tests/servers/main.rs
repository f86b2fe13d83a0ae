//! Tests against real MariaDB and MySQL servers, one of each for the whole binary where that will do.

mod bulk;
mod cased;
mod checks;
mod chunks;
mod engines;
mod events;
mod failover;
mod kinds;
mod login;
mod network;
mod odd;
mod omitted;
mod packets;
mod partitions;
mod prepared;
mod proxy;
mod replicas;
mod rogue;
mod statements;
mod stream;
mod suite;
mod support;
mod swaps;
mod tags;
mod types;
mod values;
