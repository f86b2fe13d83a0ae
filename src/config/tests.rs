//! The loader as a user meets it: files in, plan or faults out, each with its exact place.

mod arbitrary;
mod environment;
mod examples;
mod faults;
mod formats;
mod fresh;
mod secrets;

use std::path::{Path, PathBuf};

use headwater_connector::Error;

use super::{load, plan::Plan};

/// Stands for a secret in these tests; no message may hold it.
const CANARY: &str = "hunter2-canary";

/// The root of the repository.
fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Config files in a directory of their own.
struct Files {
    dir: tempfile::TempDir,
}

impl Files {
    /// With a main file.
    fn new(main: &str) -> Self {
        Self::empty().with("headwater.yaml", main)
    }

    fn empty() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    fn with(self, name: &str, text: &str) -> Self {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
        self
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn load(&self, env: &[(&str, &str)]) -> Result<Plan, Vec<Error>> {
        self.load_file("headwater.yaml", env)
    }

    fn load_file(&self, name: &str, env: &[(&str, &str)]) -> Result<Plan, Vec<Error>> {
        load(&self.path(name), env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())))
    }

    fn plan(&self, env: &[(&str, &str)]) -> Plan {
        self.load(env).unwrap_or_else(|faults| panic!("{}", self.rendered(&faults).join("\n")))
    }

    fn errors(&self, env: &[(&str, &str)]) -> Vec<Error> {
        match self.load(env) {
            Ok(_) => panic!("it is accepted"),
            Err(faults) => faults,
        }
    }

    /// `CODE file:line:column option: what -> hint`, with names relative to the directory.
    fn faults(&self, env: &[(&str, &str)]) -> Vec<String> {
        self.rendered(&self.errors(env))
    }

    fn rendered(&self, errors: &[Error]) -> Vec<String> {
        let here = format!("{}/", self.dir.path().display());
        let render = |error: &Error| {
            let places: Vec<&str> = error.place().iter().map(|(_, value)| value.as_str()).collect();
            let text = format!("{} {}: {} -> {}", error.code().id, places.join(" "), error.what(), error.hint_text());
            text.replace(&here, "")
        };
        errors.iter().map(render).collect()
    }
}

/// The faults of one main file.
fn faults(main: &str) -> Vec<String> {
    Files::new(main).faults(&[])
}

/// The one fault of one main file.
fn fault(main: &str) -> String {
    let mut faults = faults(main);
    assert_eq!(faults.len(), 1, "{}", faults.join("\n"));
    faults.remove(0)
}

/// A main file with one connector whose source has these further lines.
fn shop(lines: &str) -> String {
    let source = "connectors:\n  shop:\n    source:\n      kind: postgres\n      url: postgres://u@localhost/d\n";
    format!("{source}{lines}")
}

/// A main file whose connector has these lines behind its source.
fn shop_with(lines: &str) -> String {
    shop(&format!("      tables: [ public.orders ]\n{lines}"))
}
