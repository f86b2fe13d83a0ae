//! SQL of the tests over a client of its own, so that no program beside the server is needed.

use std::time::Duration;

use postgres::{Client, Config, NoTls, SimpleQueryMessage};

/// Runs statements one after the other, each in a transaction of its own unless they say otherwise, until one fails. The rows of
/// all as lines with `|` between the cells, or the error's SQLSTATE and message.
pub fn run(port: u16, database: &str, statements: &str) -> Result<String, String> {
    // A thread of its own: the client blocks, and most tests are inside a runtime.
    std::thread::scope(|scope| {
        let work = scope.spawn(|| {
            let mut client = connect(port, database)?;
            let mut lines = Vec::new();
            for statement in split(statements) {
                let messages = client.simple_query(statement).map_err(|error| explain(&error))?;
                lines.extend(messages.iter().filter_map(line));
            }
            Ok(lines.join("\n"))
        });
        work.join().expect("the client does not panic")
    })
}

/// A session of the superuser, for use outside of a runtime.
pub fn connect(port: u16, database: &str) -> Result<Client, String> {
    Config::new()
        .host("127.0.0.1")
        .port(port)
        .user("postgres")
        .dbname(database)
        .application_name("a test")
        .connect_timeout(Duration::from_secs(10))
        .connect(NoTls)
        .map_err(|error| explain(&error))
}

fn explain(error: &postgres::Error) -> String {
    match error.as_db_error() {
        Some(db) => format!("{} {}", db.code().code(), db.message()),
        None => error.to_string(),
    }
}

fn line(message: &SimpleQueryMessage) -> Option<String> {
    let SimpleQueryMessage::Row(row) = message else { return None };
    Some((0..row.len()).map(|at| row.get(at).unwrap_or_default()).collect::<Vec<_>>().join("|"))
}

/// Cuts at semicolons outside of quotes and dollar quotes. Comments are not known.
fn split(text: &str) -> Vec<&str> {
    let mut statements = Vec::new();
    let (mut from, mut at) = (0, 0);
    while let Some(found) = text[at..].find([';', '\'', '"', '$']) {
        at += found;
        let quote = match text.as_bytes()[at] {
            b'$' => dollar_tag(&text[at..]),
            b';' => "",
            _ => &text[at..=at],
        };
        if !quote.is_empty() {
            at += quote.len();
            at += text[at..].find(quote).expect("a quote that ends") + quote.len();
            continue;
        }
        if text.as_bytes()[at] == b';' {
            statements.push(&text[from..at]);
            from = at + 1;
        }
        at += 1;
    }
    statements.push(&text[from..]);
    statements.retain(|statement| !statement.trim().is_empty());
    statements
}

/// `$$` or `$name$` at the front; empty if it is something else.
fn dollar_tag(text: &str) -> &str {
    let name = text[1..].find(|letter: char| !letter.is_alphanumeric() && letter != '_').unwrap_or(text.len() - 1);
    if text[1 + name..].starts_with('$') { &text[..name + 2] } else { "" }
}

#[test]
fn statements_are_cut_outside_of_quotes() {
    let text = "SELECT ';', \"a;b\"; DO $$ BEGIN x; END $$;\nSELECT $1; SELECT $t$ ; $t$ ;";
    assert_eq!(split(text), ["SELECT ';', \"a;b\"", " DO $$ BEGIN x; END $$", "\nSELECT $1", " SELECT $t$ ; $t$ "]);
}
