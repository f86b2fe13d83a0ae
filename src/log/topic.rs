//! Topic names and settings.

/// How a topic forgets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cleanup {
    /// The last record of each key stays for ever.
    Compact,
    /// Records go after their time.
    Delete,
}

/// A topic as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicSpec {
    /// The name.
    pub name: String,
    /// The count the config demands, or that is pinned; none adopts what exists, else the log's default.
    pub partitions: Option<u32>,
    /// How it forgets.
    pub cleanup: Cleanup,
}

/// A topic as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicState {
    /// The name.
    pub name: String,
    /// Its partitions.
    pub partitions: u32,
    /// Identity of this incarnation of the topic where the log knows one, else empty.
    pub id: String,
}

/// The longest name that Kafka takes, minus room for suffixes of its own files.
const NAME_MAX_CHARS: usize = 249;

/// What is wrong with a topic name, if anything.
pub fn name_fault(name: &str) -> Option<String> {
    if name.is_empty() || name == "." || name == ".." {
        return Some(format!("topic name {name:?} is not allowed"));
    }
    if name.len() > NAME_MAX_CHARS {
        return Some(format!("topic name has {} characters; {NAME_MAX_CHARS} are allowed", name.len()));
    }
    let bad = name.chars().find(|c| !(c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-')))?;
    Some(format!("topic name {name:?} has the character {bad:?}; letters, digits, '.', '_' and '-' are allowed"))
}

/// The internal topics of a connector.
#[derive(Clone, Debug)]
pub struct InternalTopics {
    /// Position and state; one partition, compact.
    pub checkpoint: String,
    /// Schemas; one partition, compact.
    pub schema: String,
    /// Rows that could not be keyed or represented.
    pub dead: String,
    /// Rows whose newest event lacks columns; one partition, compact.
    pub refresh: String,
    /// What was done to the connector's checkpoint by hand; created by the first reset.
    pub audit: String,
}

impl InternalTopics {
    /// `prefix` is `log.prefix`.
    pub fn new(prefix: &str, connector: &str) -> Self {
        Self {
            checkpoint: format!("{prefix}.{connector}.checkpoint"),
            schema: format!("{prefix}.{connector}.schema"),
            dead: format!("{prefix}.{connector}.dead"),
            refresh: format!("{prefix}.{connector}.refresh"),
            audit: format!("{prefix}.{connector}.audit"),
        }
    }
}

/// The transactional id of a connector.
pub fn transactional_id(prefix: &str, connector: &str) -> String {
    format!("{prefix}.{connector}")
}
