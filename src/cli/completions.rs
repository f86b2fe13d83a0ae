//! `headwater completions`.

use clap::CommandFactory;

use super::{Cli, Outcome, exit, output::Output};

/// Which shell.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  headwater completions bash > /etc/bash_completion.d/headwater")]
pub struct Args {
    /// The shell to complete in.
    shell: clap_complete::Shell,
}

/// Prints the script.
pub fn run(args: &Args, output: &mut Output) -> Outcome {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "headwater", &mut script);
    output.bytes(&script)?;
    Ok(exit::OK)
}
