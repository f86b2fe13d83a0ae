//! Logical messages (`pg_logical_emit_message`) as rows of a table that is only in the stream.

use std::sync::Arc;

use headwater_connector::{Batch, Before, Column, Error, Op, Schema, Type, Value, selection::glob};

use crate::{codes, config::Settings, pgoutput::Logical};

/// What stands for the table's name.
pub const TABLE: &str = "hw.message";

/// The first major version whose pgoutput sends messages.
const SINCE: u32 = 14;

/// Which messages become events, and what their rows look like.
pub struct Messages {
    prefixes: Vec<String>,
    schema: Arc<Schema>,
}

impl Messages {
    /// None if the options ask for no messages.
    pub fn of(settings: &Settings) -> Option<Self> {
        let schema = Arc::new(schema(settings)?);
        Some(Self { prefixes: settings.messages.clone(), schema })
    }

    /// Whether messages with this prefix become events.
    pub fn take(&self, prefix: &[u8]) -> bool {
        self.prefixes.iter().any(|pattern| glob(pattern.as_bytes(), prefix))
    }

    /// Appends a message to the transaction begun last.
    pub fn push(&self, batch: &mut Batch, ordinal: u64, message: &Logical<'_>) {
        let start = batch.begin_row();
        batch.push(match std::str::from_utf8(message.prefix) {
            Ok(prefix) => Value::Text(prefix),
            // From a server that cannot convert (T9).
            Err(_) => Value::Invalid(message.prefix),
        });
        batch.push(Value::Bytes(message.content));
        batch.push(Value::Bool(message.transactional));
        let row = batch.end_row(start);
        let index = batch.schema_index(&self.schema);
        batch.push_change(Op::Insert, index, ordinal, Before::None, Some(row));
    }
}

/// The shape of messages; none if the options ask for none. They are keyed by prefix unless the config says otherwise.
pub fn schema(settings: &Settings) -> Option<Schema> {
    if settings.messages.is_empty() {
        return None;
    }
    let column = |name: &str, r#type, source_type: &str| Column {
        name: name.into(),
        r#type,
        source_type: source_type.into(),
        nullable: false,
    };
    let columns = vec![
        column("prefix", Type::String, "text"),
        column("content", Type::Bytes, "bytea"),
        column("transactional", Type::Boolean, "boolean"),
    ];
    let configured = settings.keys.iter().find(|(table, _)| table == TABLE).map(|(_, names)| names.as_slice());
    // A name that is no column is reported with the other rules of `events.tables`.
    let key = configured.unwrap_or_default().iter().filter_map(|name| columns.iter().position(|column| column.name == *name));
    let key: Vec<usize> = key.collect();
    Some(Schema { table: TABLE.into(), columns, key: if key.is_empty() { vec![0] } else { key } })
}

/// Why a real table cannot be read beside messages.
pub fn collision(settings: &Settings, table: &str) -> Option<Error> {
    (!settings.messages.is_empty() && table == TABLE).then(|| {
        Error::new(&codes::BAD_OPTION, "a table bears the name under which messages become events")
            .at("table", TABLE)
            .hint(format!("Take {TABLE} out of `tables`, rename the table, or remove `messages`."))
    })
}

/// Why this server cannot send messages.
pub fn unsupported(settings: &Settings, major: u32) -> Option<Error> {
    (!settings.messages.is_empty() && major < SINCE).then(|| {
        Error::new(&codes::TOO_OLD, format!("PostgreSQL {major} does not send logical messages"))
            .at("server", settings.server.endpoint())
            .hint(format!("Upgrade to {SINCE} or newer, or remove `messages`."))
    })
}
