//! The black-box tests: one binary, one module per promise, real servers and the real daemon.

mod backfill;
mod backfill_views;
mod bad_input;
mod binlog;
mod checker;
mod cli;
mod control;
mod crash;
mod demo;
mod drift;
mod embedded;
mod http;
mod ingest;
mod kafka;
mod kill;
mod monitoring;
mod reset;
mod shutdown;
mod support;
mod tidy;
mod variants;
