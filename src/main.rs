//! One command, and its exit code.

fn main() -> std::process::ExitCode {
    headwater::cli::main()
}
