//! Places where a test can make the real process die, and known mistakes that a test can switch on.
//!
//! `HEADWATER_FAULT=point:n[:abort|exit|stall|stop]` acts at the n-th hit of a point of [`POINTS`]; `HEADWATER_VARIANT=name` makes
//! one mistake of [`VARIANTS`]. Both exist in builds with debug assertions only: elsewhere these functions are constant and
//! empty, which the compiler checks below. The points bear the names of the crash table in `docs/proof.md`.

/// Where the process can be ended.
pub const POINTS: &[&str] = &[
    "C1",  // before the older writers are fenced
    "C2",  // while they are fenced
    "C3",  // the intent is committed, nothing exists at the source
    "C4",  // the source is prepared, the first position is not committed
    "C5",  // a log transaction is open and empty
    "C6",  // half of its records are at the log
    "C7",  // all of them, and the checkpoint
    "C8",  // it is committed, and nobody was told
    "C9",  // the commit is on its way (Kafka only: elsewhere this is C7)
    "C12", // it is committed, the source was not told
    "C13", // the source was told
    "C14", // a slice of a large transaction is committed
    "C25", // as C7, in a log transaction that changes a schema
];

/// Mistakes that others made, or that we could make.
pub const VARIANTS: &[&str] = &[
    "resume-past-the-end",
    "confirm-before-commit",
    "ignore-a-send-error",
    "furthest-of-two-positions",
    "per-row-position",
    "recreate-a-missing-slot",
    "skip-fencing",
    "forget-the-partial",
    "resume-where-the-slot-stands",
    "sequence-stands-still",
    "absent-as-null",
    "move-without-a-tombstone",
    "watermark-window",
    "publish-stale-rows",
];

#[cfg(debug_assertions)]
mod active {
    use std::{
        io::Write,
        sync::{
            OnceLock,
            atomic::{AtomicU64, Ordering},
        },
    };

    use super::{POINTS, VARIANTS};

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum Act {
        /// SIGABRT, without any tidying.
        Abort,
        /// Exit code 86, without any tidying of ours.
        Exit,
        /// This thread goes no further.
        Stall,
        /// SIGSTOP for the whole process; SIGCONT lets it go on.
        Stop,
    }

    #[derive(Debug)]
    struct Plan {
        point: Option<(&'static str, u64, Act)>,
        variant: Option<&'static str>,
    }

    static HITS: AtomicU64 = AtomicU64::new(0);

    fn plan() -> Option<&'static Plan> {
        static PLAN: OnceLock<Option<Plan>> = OnceLock::new();
        let variable = |name| std::env::var(name).ok();
        PLAN.get_or_init(|| parse(variable("HEADWATER_FAULT").as_deref(), variable("HEADWATER_VARIANT").as_deref()).ok()).as_ref()
    }

    fn parse(fault: Option<&str>, variant: Option<&str>) -> Result<Plan, String> {
        let known = |names: &'static [&'static str], name: &str| {
            names.iter().copied().find(|known| *known == name).ok_or_else(|| format!("{name:?} is none of {}", names.join(", ")))
        };
        let point = match fault {
            None => None,
            Some(text) => {
                let mut parts = text.split(':');
                let point = known(POINTS, parts.next().unwrap_or_default())?;
                let nth = parts.next().and_then(|nth| nth.parse().ok()).filter(|nth| *nth > 0);
                let nth = nth.ok_or_else(|| format!("HEADWATER_FAULT={text}: point:n[:act] is needed, with n from 1"))?;
                let act = match parts.next() {
                    None | Some("abort") => Act::Abort,
                    Some("exit") => Act::Exit,
                    Some("stall") => Act::Stall,
                    Some("stop") => Act::Stop,
                    Some(other) => return Err(format!("{other:?} is none of abort, exit, stall, stop")),
                };
                Some((point, nth, act))
            }
        };
        Ok(Plan { point, variant: variant.map(|name| known(VARIANTS, name)).transpose()? })
    }

    /// See [`super::load`].
    pub fn load() -> Result<(), String> {
        let variable = |name| std::env::var(name).ok();
        parse(variable("HEADWATER_FAULT").as_deref(), variable("HEADWATER_VARIANT").as_deref()).map(drop)
    }

    /// See [`super::variant`].
    pub fn variant(name: &str) -> bool {
        plan().is_some_and(|plan| plan.variant == Some(name))
    }

    /// See [`super::point_with`].
    pub fn point_with(name: &str, prepare: impl FnOnce()) {
        let Some((_, nth, act)) = plan().and_then(|plan| plan.point).filter(|(point, ..)| *point == name) else { return };
        if HITS.fetch_add(1, Ordering::SeqCst) + 1 != nth {
            return;
        }
        prepare();
        let mut stderr = std::io::stderr().lock();
        let _ = writeln!(stderr, "fault {name}:{nth} {act:?}");
        let _ = stderr.flush();
        drop(stderr);
        match act {
            Act::Abort => std::process::abort(),
            Act::Exit => std::process::exit(86),
            Act::Stall => loop {
                std::thread::park();
            },
            Act::Stop => {
                let _ = std::process::Command::new("kill").arg("-STOP").arg(std::process::id().to_string()).status();
            }
        }
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn unknown_names_are_errors() {
            let fault = |text| parse(Some(text), None);
            assert_eq!(fault("C7:2").expect("a plan").point, Some(("C7", 2, Act::Abort)));
            assert_eq!(fault("C12:1:stall").expect("a plan").point, Some(("C12", 1, Act::Stall)));
            for wrong in ["", "C7", "C7:0", "C7:x", "C99:1", "C7:1:jump"] {
                assert!(fault(wrong).is_err(), "{wrong}");
            }
            assert!(parse(None, Some("no-such-mistake")).is_err());
            for variant in VARIANTS {
                assert_eq!(parse(None, Some(variant)).expect("a plan").variant, Some(*variant));
            }
        }

        #[test]
        fn without_the_variables_nothing_happens() {
            POINTS.iter().for_each(|point| point_with(point, || panic!("{point} must not act")));
            assert!(VARIANTS.iter().all(|name| !variant(name)));
        }
    }
}

/// Refuses a plan in the environment that names something unknown; to be called before anything is done.
#[cfg(debug_assertions)]
pub fn load() -> Result<(), String> {
    active::load()
}

/// The process is at this point.
#[cfg(debug_assertions)]
pub fn point(name: &str) {
    active::point_with(name, || {});
}

/// The process is at this point; `prepare` runs only if it ends here.
#[cfg(debug_assertions)]
pub fn point_with(name: &str, prepare: impl FnOnce()) {
    active::point_with(name, prepare);
}

/// Whether this mistake is to be made.
#[cfg(debug_assertions)]
pub fn variant(name: &str) -> bool {
    active::variant(name)
}

/// Nothing can be planned in this build.
#[cfg(not(debug_assertions))]
#[inline(always)]
pub const fn load() -> Result<(), String> {
    Ok(())
}

/// Nothing.
#[cfg(not(debug_assertions))]
#[inline(always)]
pub const fn point(_: &str) {}

/// Nothing.
#[cfg(not(debug_assertions))]
#[inline(always)]
pub fn point_with(_: &str, _: impl FnOnce()) {}

/// Never.
#[cfg(not(debug_assertions))]
#[inline(always)]
pub const fn variant(_: &str) -> bool {
    false
}

/// Evaluated by the compiler: what a constant can call reads no environment and ends no process.
#[cfg(not(debug_assertions))]
const _: () = {
    point("C7");
    assert!(!variant("skip-fencing"));
};
