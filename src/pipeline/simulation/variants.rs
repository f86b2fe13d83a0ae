//! The suite must catch what is known to be wrong, in the servers and in Headwater.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::{Lie, Variant, search, simulate};

/// Seeds within which each must be caught: far fewer than an ordinary run has.
const SEEDS: u64 = 2_000;

const VARIANTS: [Variant; 31] = [
    Variant::ResumeFromEndPlusOne,
    Variant::ConfirmBeforeCommit,
    Variant::IgnoreSendError,
    Variant::MaxOfPositions,
    Variant::NoRecycling,
    Variant::PerRowPosition,
    Variant::RecreateSlot,
    Variant::SeqNotStored,
    Variant::CheckpointOutside,
    Variant::SkipFencing,
    Variant::CheckpointBeforeFencing,
    Variant::ForgetPartial,
    Variant::OrdinalsAfterFilter,
    Variant::ReadToTheStableEnd,
    Variant::ResendOnDoubt,
    Variant::SkipTimelineCheck,
    Variant::KeepTimeline,
    Variant::NoBarrier,
    Variant::BarrierBeforeSnapshot,
    Variant::NoGate,
    Variant::NoGateAfterRestart,
    Variant::LogOrder,
    Variant::ForgetJournal,
    Variant::ProgressOutside,
    Variant::ProgressFirst,
    Variant::SnapshotBeforeLock,
    Variant::ForgetPending,
    Variant::KeysCutShort,
    Variant::RefreshCutShort,
    Variant::BuryUnseen,
    Variant::OverflowForgets,
];

/// The first seed that shows the fault, and what the oracles said about it.
fn caught(lie: Lie, variant: Variant) -> Option<(u64, String)> {
    search(0..SEEDS, |seed| match catch_unwind(AssertUnwindSafe(|| simulate(seed, lie, variant))) {
        Ok(Ok(_)) => None,
        Ok(Err(fault)) => Some(fault),
        // An assertion of a model, for example about the slot, counts too.
        Err(_) => Some("a panic".to_owned()),
    })
}

#[test]
fn every_known_bad_variant_is_caught() {
    for variant in VARIANTS {
        let (seed, fault) = caught(Lie::None, variant).unwrap_or_else(|| panic!("{variant:?} went unnoticed in {SEEDS} seeds"));
        println!("{variant:?}: caught after {} seeds: {}", seed + 1, fault.chars().take(160).collect::<String>());
    }
}

#[test]
fn every_lie_of_a_model_is_caught() {
    for lie in [Lie::TornCommit, Lie::NoFence, Lie::ResumeTooFar, Lie::ResumeTooEarly, Lie::ForgetOrdinal] {
        let (seed, fault) = caught(lie, Variant::Sound).unwrap_or_else(|| panic!("{lie:?} went unnoticed in {SEEDS} seeds"));
        println!("{lie:?}: caught after {} seeds: {}", seed + 1, fault.chars().take(160).collect::<String>());
    }
}
