//! Secrets: written as references, printed as stars, wiped on drop.

use std::{borrow::Cow, fmt, path::PathBuf};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, de};
use zeroize::Zeroizing;

use crate::{Error, Result, codes};

/// A password, token or key of an option.
///
/// It is written as `{env: NAME}`, `{file: PATH}` or a literal, and read at each use, so that a rotated secret needs no restart.
/// It has no way to be printed.
#[derive(Clone)]
pub struct Secret(Reference);

#[derive(Clone)]
enum Reference {
    Literal(Zeroizing<String>),
    Env(String),
    File(PathBuf),
}

impl Secret {
    /// A secret given in plain text.
    pub fn literal(text: impl Into<String>) -> Self {
        Self(Reference::Literal(Zeroizing::new(text.into())))
    }

    /// Whether the configuration holds the secret itself, which `check` warns about.
    pub fn is_literal(&self) -> bool {
        matches!(self.0, Reference::Literal(_))
    }

    /// The text. Fails with a Config error if the variable is not set or the file cannot be read.
    pub fn reveal(&self) -> Result<Zeroizing<String>> {
        match &self.0 {
            Reference::Literal(text) => Ok(text.clone()),
            Reference::Env(name) => std::env::var(name).map(Zeroizing::new).map_err(|_| {
                Error::new(&codes::SECRET_MISSING, format!("environment variable {name} is not set"))
                    .hint(format!("Set {name} in the environment of headwater, or point the option at a file."))
            }),
            Reference::File(path) => match std::fs::read_to_string(path) {
                Ok(text) => {
                    let text = Zeroizing::new(text);
                    Ok(Zeroizing::new(text.trim_end_matches(['\n', '\r']).to_owned()))
                }
                Err(error) => Err(Error::new(&codes::SECRET_MISSING, "secret file cannot be read")
                    .at("file", path.display())
                    .hint("Create the file with the secret as its only line, readable by the user that runs headwater.")
                    .caused_by(error)),
            },
        }
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Raw {
            Text(String),
            Env(Env),
            File(File),
        }
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Env {
            env: String,
        }
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct File {
            file: PathBuf,
        }
        // The message must not quote the input: it may be the secret.
        let raw =
            Raw::deserialize(deserializer).map_err(|_| de::Error::custom("expected {env: NAME}, {file: PATH} or a text"))?;
        Ok(Self(match raw {
            Raw::Text(text) => Reference::Literal(Zeroizing::new(text)),
            Raw::Env(Env { env }) => Reference::Env(env),
            Raw::File(File { file }) => Reference::File(file),
        }))
    }
}

impl JsonSchema for Secret {
    fn schema_name() -> Cow<'static, str> {
        "Secret".into()
    }

    /// Marked with `x-secret`, so that the config loader finds secrets without knowing the connector.
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "A secret: `{env: NAME}`, `{file: PATH}`, or the text itself (`check` warns).",
            "x-secret": true,
            "anyOf": [
                { "type": "object", "properties": { "env": { "type": "string" } }, "required": ["env"], "additionalProperties": false },
                { "type": "object", "properties": { "file": { "type": "string" } }, "required": ["file"], "additionalProperties": false },
                { "type": "string" }
            ]
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_prints_as_stars() {
        let secret = Secret::literal("hunter2");
        assert_eq!(format!("{secret} {secret:?}"), "*** ***");
        assert_eq!(secret.reveal().unwrap().as_str(), "hunter2");
    }

    #[test]
    fn a_secret_of_a_wrong_shape_is_not_quoted_in_the_error() {
        let error = serde_json::from_str::<Secret>(r#"{"evn":"hunter2"}"#).unwrap_err();
        assert!(!error.to_string().contains("hunter2"), "{error}");
    }

    #[test]
    fn a_missing_file_is_a_config_error_that_names_it() {
        let secret: Secret = serde_json::from_str(r#"{"file":"/nonexistent/secret"}"#).unwrap();
        let error = secret.reveal().unwrap_err();
        assert_eq!(error.kind(), crate::Kind::Config);
        assert!(error.to_string().contains("/nonexistent/secret"));
    }
}
