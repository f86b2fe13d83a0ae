//! Errors: seven kinds, stable codes, one page per code.
//!
//! A kind says what the daemon does about an error, a code says what happened. Every code has one Markdown page that is
//! embedded in the binary. Messages are lower-case fragments that chain; hints are full sentences in the imperative.
//! Neither ever holds a row value or a secret.

use std::fmt;

use serde::Serialize;

/// What the daemon does about an error. The set is closed: the supervisor matches it exhaustively.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// The world is briefly wrong: back off with jitter and reopen from the checkpoint, for ever.
    Retry,
    /// What the files say must change.
    Config,
    /// A privilege, setting, port, directory or server must change.
    Environment,
    /// This row cannot be keyed or represented; the connector's policy decides.
    Data,
    /// History that is needed is gone; only a person can decide how to begin anew.
    Lost,
    /// Another instance took over; stop and do not fight.
    Fenced,
    /// An invariant broke; stop this connector, keep the others.
    Bug,
}

impl Kind {
    /// The lower-case word used in status output and logs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Retry => "retry",
            Self::Config => "config",
            Self::Environment => "environment",
            Self::Data => "data",
            Self::Lost => "lost",
            Self::Fenced => "fenced",
            Self::Bug => "bug",
        }
    }
}

/// A stable error code. Declare codes with [`codes!`](crate::codes!).
#[derive(Debug)]
pub struct Code {
    /// `HW` and four digits.
    pub id: &'static str,
    /// What the daemon does about it.
    pub kind: Kind,
    /// A few words, for lists.
    pub title: &'static str,
    /// The Markdown page: what happened, how to see it, how to mend it.
    pub page: &'static str,
}

/// Declares codes, embeds their pages and lists them in `ALL`.
///
/// The first literal is the folder of the pages, relative to the crate's manifest.
/// A code without a page does not compile.
#[macro_export]
macro_rules! codes {
    ($folder:literal; $($name:ident = $id:literal, $kind:ident, $title:literal;)*) => {
        $(
            #[doc = $title]
            pub static $name: $crate::Code = $crate::Code {
                id: $id,
                kind: $crate::Kind::$kind,
                title: $title,
                page: include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/", $folder, "/", $id, ".md")),
            };
        )*
        /// Every code of this crate, in the order of declaration.
        pub static ALL: &[&$crate::Code] = &[$(&$name),*];
    };
}

/// The result of everything that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error with a code, what happened, where, and a hint.
pub struct Error(Box<Inner>);

struct Inner {
    code: &'static Code,
    what: String,
    place: Vec<(&'static str, String)>,
    hint: String,
    cause: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// `what` is a lower-case fragment without a full stop.
    pub fn new(code: &'static Code, what: impl Into<String>) -> Self {
        Self(Box::new(Inner { code, what: what.into(), place: Vec::new(), hint: String::new(), cause: None }))
    }

    /// Names the place: `file`, `option`, `table`, `slot`, `topic` and so on. Call it once per part.
    #[must_use]
    pub fn at(mut self, label: &'static str, value: impl fmt::Display) -> Self {
        self.0.place.push((label, value.to_string()));
        self
    }

    /// What to do, as a full sentence in the imperative.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.0.hint = hint.into();
        self
    }

    /// Keeps the error underneath; its text is chained behind this one's.
    #[must_use]
    pub fn caused_by(mut self, cause: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.0.cause = Some(cause.into());
        self
    }

    /// The stable code.
    pub fn code(&self) -> &'static Code {
        self.0.code
    }

    /// What the daemon does about it.
    pub fn kind(&self) -> Kind {
        self.0.code.kind
    }

    /// What happened, with the causes chained behind it.
    pub fn what(&self) -> String {
        let mut text = self.0.what.clone();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            let next = error.to_string();
            if !text.ends_with(&next) {
                text.push_str(": ");
                text.push_str(&next);
            }
            cause = error.source();
        }
        text
    }

    /// Where, as label and value.
    pub fn place(&self) -> &[(&'static str, String)] {
        &self.0.place
    }

    /// What to do, or an empty string.
    pub fn hint_text(&self) -> &str {
        &self.0.hint
    }
}

impl fmt::Display for Error {
    /// One line: code, what, where, hint. The command line prints the same parts on lines of their own.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.0.code.id, self.what())?;
        for (label, value) in &self.0.place {
            write!(f, ", {label} {value}")?;
        }
        if !self.0.hint.is_empty() {
            write!(f, " (hint: {})", self.0.hint)?;
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.cause.as_ref().map(|cause| &**cause as &(dyn std::error::Error + 'static))
    }
}

/// How grave a finding of a preflight is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Looked at and found in order.
    Ok,
    /// Works, but the operator should know.
    Warning,
    /// The connector cannot run.
    Error,
}

/// One finding of a preflight.
#[derive(Debug)]
pub struct Finding {
    /// How grave it is.
    pub level: Level,
    /// What was found, as a lower-case fragment.
    pub what: String,
    /// The error of a finding that is not [`Level::Ok`], with place and hint; a hint holds the exact SQL or setting that mends it.
    pub error: Option<Error>,
}

impl Finding {
    /// Looked at and found in order.
    pub fn ok(what: impl Into<String>) -> Self {
        Self { level: Level::Ok, what: what.into(), error: None }
    }

    /// Works, but the operator should know.
    pub fn warning(error: Error) -> Self {
        Self { level: Level::Warning, what: error.what(), error: Some(error) }
    }

    /// The connector cannot run.
    pub fn error(error: Error) -> Self {
        Self { level: Level::Error, what: error.what(), error: Some(error) }
    }
}
