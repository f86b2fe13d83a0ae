//! From the kind of an error to the exit code. This is the only place that knows the numbers.

use headwater_connector::Kind;

/// All is well.
pub const OK: u8 = 0;
/// A mistake on the command line.
pub const USAGE: u8 = 2;

/// The exit code of a kind.
pub const fn of(kind: Kind) -> u8 {
    match kind {
        Kind::Data | Kind::Lost | Kind::Bug => 1,
        Kind::Config => USAGE,
        // A command that runs once does not wait for the world to mend itself.
        Kind::Environment | Kind::Retry => 3,
        Kind::Fenced => 4,
    }
}

/// The code that counts when several things failed: 1, then 4, 3, 2.
pub fn gravest(kinds: impl IntoIterator<Item = Kind>) -> u8 {
    let codes: Vec<u8> = kinds.into_iter().map(of).collect();
    [1, 4, 3, 2].into_iter().find(|code| codes.contains(code)).unwrap_or(OK)
}

/// The code of `check`: what the files say must be mended before the rest can be judged, so 2 stands over 3.
pub fn of_check(kinds: impl IntoIterator<Item = Kind>) -> u8 {
    let codes: Vec<u8> = kinds.into_iter().map(of).collect();
    match codes.as_slice() {
        [] => OK,
        codes if codes.contains(&USAGE) => USAGE,
        _ => 3,
    }
}
