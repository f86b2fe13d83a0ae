//! The command line: one file per command, each a call into the library and a way to print what it returns.

pub mod backfill;
pub mod check;
pub mod codes;
pub mod completions;
pub mod connectors;
pub mod control;
pub mod demo;
pub mod exit;
pub mod explain;
pub mod output;
pub mod plan;
mod progress;
pub mod reset;
pub mod run;
pub mod status;
pub mod tail;
#[cfg(test)]
mod tests;

use std::{path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};
use headwater_connector::Error;

use output::{Format, Output};

const EXAMPLES: &str = "\
Examples:
  headwater check                     Is everything in order? Changes nothing
  headwater plan                      What would run create? Changes nothing
  headwater run                       Run every connector until SIGTERM or Ctrl-C
  headwater status                    What is running, and how far behind is it?
  headwater pause shop                Stop a connector until `headwater resume shop`
  headwater backfill shop --list      Which rows are read that were there before, and how far?
  headwater tail shop.orders          Print events as they are committed
  headwater connectors postgres       All options of a kind of connector
  headwater explain HW1002            What an error code means, and how to mend it

Exit codes: 0 ok; 1 failure at run time; 2 your input must change; 3 your environment must change;
4 another instance took over, do not restart.";

/// Change data capture: database tables become keyed events in topics, exactly once.
#[derive(Debug, Parser)]
#[command(name = "headwater", version, about, after_help = EXAMPLES, max_term_width = 100)]
pub struct Cli {
    /// The main config file (YAML, TOML or JSON, by extension).
    #[arg(short, long, global = true, env = "HEADWATER_CONFIG", default_value = "headwater.yaml", value_name = "FILE")]
    pub config: PathBuf,
    /// How to print: for people, or for programs.
    #[arg(long, global = true, value_enum, default_value = "text")]
    pub format: Format,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run every connector until SIGTERM or Ctrl-C; a second signal stops at once.
    Run,
    /// Read the config, connect, look at everything, and say what to mend. Changes nothing.
    Check,
    /// Show what `run` would create or change: topics, backfills, and what it makes at the source. Changes nothing.
    Plan,
    /// Ask the running daemon for state, lag and last error of each connector.
    Status,
    /// Stop a connector in order and keep it stopped, also over restarts of the daemon, until `resume`.
    Pause(control::Args),
    /// End the pause of a connector.
    Resume(control::Args),
    /// Start a connector anew from its checkpoint, whatever its state.
    Restart(control::Args),
    /// Read rows that are there already (again), and hold, resume or list that.
    Backfill(backfill::Args),
    /// Give up a connector's position, or move it to another server, after showing what that means.
    Reset(reset::Args),
    /// Print the committed events of a topic.
    Tail(tail::Args),
    /// A small shop on a real PostgreSQL, MariaDB or MySQL becomes topics, while the daemon is killed again and again.
    Demo(demo::Args),
    /// List the kinds of connectors; with KIND the reference of its options.
    Connectors(connectors::Args),
    /// Print the page of an error code; without CODE list all codes.
    Explain(explain::Args),
    /// Print a script of shell completions.
    Completions(completions::Args),
}

/// Why a command did not end well.
#[derive(Debug)]
pub enum Failure {
    /// Errors with codes.
    Errors(Vec<Error>),
    /// The output could not be written.
    Output(std::io::Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Errors(vec![error])
    }
}

impl From<Vec<Error>> for Failure {
    fn from(errors: Vec<Error>) -> Self {
        Self::Errors(errors)
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::Output(error)
    }
}

/// What a command returns: its exit code.
pub type Outcome = Result<u8, Failure>;

/// The whole program.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // A reader that has gone away does not turn `--help` into a failure.
            drop(error.print());
            return ExitCode::from(if error.use_stderr() { exit::USAGE } else { exit::OK });
        }
    };
    let mut output = Output::standard(cli.format);
    let outcome = execute(&cli, &mut output).and_then(|code| output.flush().map(|()| code).map_err(Failure::from));
    ExitCode::from(match outcome {
        Ok(code) => code,
        Err(Failure::Errors(errors)) => {
            output.errors(&errors);
            exit::gravest(errors.iter().map(Error::kind))
        }
        Err(Failure::Output(error)) if error.kind() == std::io::ErrorKind::BrokenPipe => exit::OK,
        Err(Failure::Output(error)) => {
            let error = Error::new(&codes::OUTPUT, "output cannot be written").caused_by(error);
            output.errors(&[error.hint("Make room where the output goes.")]);
            exit::of(codes::OUTPUT.kind)
        }
    })
}

fn execute(cli: &Cli, output: &mut Output) -> Outcome {
    match &cli.command {
        Command::Run => run::run(&cli.config, output),
        Command::Check => check::run(&cli.config, output),
        Command::Plan => plan::run(&cli.config, output),
        Command::Status => status::run(&cli.config, output),
        Command::Pause(args) => control::run(&cli.config, "pause", args, output),
        Command::Resume(args) => control::run(&cli.config, "resume", args, output),
        Command::Restart(args) => control::run(&cli.config, "restart", args, output),
        Command::Backfill(args) => backfill::run(&cli.config, args, output),
        Command::Reset(args) => reset::run(&cli.config, args, output),
        Command::Tail(args) => tail::run(&cli.config, args, output),
        Command::Demo(args) => demo::run(args),
        Command::Connectors(args) => connectors::run(args, output),
        Command::Explain(args) => explain::run(args, output),
        Command::Completions(args) => completions::run(args, output),
    }
}

/// The environment as text; what is not text cannot be for us.
pub fn environment() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
}

/// Runs a future of a short command. The daemon's own runtime is built in [`run`].
pub fn block_on<T>(future: impl Future<Output = T>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    Ok(runtime.map_err(start_failed)?.block_on(future))
}

/// The operating system gave no threads or file descriptors.
pub fn start_failed(error: std::io::Error) -> Error {
    Error::new(&codes::START, "the runtime cannot be started")
        .caused_by(error)
        .hint("Raise the limits of threads and open files of this process.")
}
