//! Places, partitions, transactions and the order of everything.

use std::collections::{BTreeMap, BTreeSet};

use super::{Expected, Findings, Rules, name, published};
use crate::support::record::Record;

/// I3: `hw.pos` has its form, is unique, and grows with the offset in every partition.
pub fn positions(records: &[Record], findings: &mut Findings) {
    let mut seen = BTreeSet::new();
    let mut widths = BTreeSet::new();
    let mut partitions: BTreeMap<(&str, u32), Vec<&Record>> = BTreeMap::new();
    for record in records {
        let pos = record.header("hw.pos");
        if record.pos().is_none() {
            findings.add("position", format!("not <era>-<seq>-<index> in hex: {}", name(record)));
        }
        widths.insert(pos.len());
        if !seen.insert(pos) {
            findings.add("position", format!("twice: {}", name(record)));
        }
        partitions.entry((&record.topic, record.partition)).or_default().push(record);
    }
    if widths.len() > 1 {
        findings.add("position", format!("the width is not fixed: {widths:?}"));
    }
    for all in partitions.values_mut() {
        all.sort_by_key(|record| record.offset);
        for pair in all.windows(2) {
            if pair[0].offset == pair[1].offset {
                findings.add("position", format!("two records at one offset: {}, {}", name(pair[0]), name(pair[1])));
            }
            if pair[0].header("hw.pos") >= pair[1].header("hw.pos") {
                findings.add("position", format!("does not grow with the offset: {}, then {}", name(pair[0]), name(pair[1])));
            }
        }
    }
}

/// I13: a key lives in the partition that murmur2 of its bytes names.
pub fn partitions(records: &[Record], rules: &Rules, findings: &mut Findings) {
    for record in records {
        let expected = partition(&record.key, rules.partitions);
        if record.partition != expected {
            findings.add("partition", format!("{} belongs to partition {expected}", name(record)));
        }
    }
}

/// The events of one source transaction carry one `hw.tx`, lie side by side, and were committed together.
pub fn transactions(expected: &[Expected], records: &[Record], rules: &Rules, findings: &mut Findings) {
    let mut groups: Vec<Vec<&Record>> = Vec::new();
    let mut seen = BTreeSet::new();
    for record in published(records) {
        let tx = record.header("hw.tx");
        match groups.last_mut() {
            Some(group) if group[0].header("hw.tx") == tx => group.push(record),
            _ => {
                if tx.is_empty() || !seen.insert(tx) {
                    findings.add("transaction", format!("taken up again or without a name: {}", name(record)));
                }
                groups.push(vec![record]);
            }
        }
    }
    let mut sizes: Vec<usize> = Vec::new();
    let mut last = None;
    for event in expected {
        if last != Some(event.tx) {
            sizes.push(0);
            last = Some(event.tx);
        }
        *sizes.last_mut().expect("one was pushed") += 1;
    }
    if sizes.len() != groups.len() {
        findings.add("transaction", format!("the source committed {}, the topics hold {}", sizes.len(), groups.len()));
    }
    for (number, (group, size)) in groups.iter().zip(&sizes).enumerate() {
        if group.len() != *size {
            findings.add("transaction", format!("number {number} has {size} events, not {}: {}", group.len(), name(group[0])));
        }
        let seqs: BTreeSet<_> = group.iter().map(|record| record.pos().map(|(era, seq, _)| (era, seq))).collect();
        if seqs.len() > 1 && *size <= rules.cut_above {
            findings.add("transaction", format!("torn over log transactions {seqs:?}: {}", name(group[0])));
        }
    }
}

/// Everything at once: publication order is the source's commit order, with nothing between and nothing missing.
pub fn total(expected: &[Expected], records: &[Record], findings: &mut Findings) {
    let published = published(records);
    if published.len() != expected.len() {
        findings.add("total", format!("{} events expected, {} records", expected.len(), published.len()));
    }
    for (number, (event, record)) in expected.iter().zip(published).enumerate() {
        let same =
            event.topic == record.topic && event.key == record.key && event.op == record.op() && event.value == record.value;
        if !same {
            let wanted = format!("{} {} {} version {}", event.op, event.topic, event.key, event.ver);
            findings.add("total", format!("event {number} is {wanted}, the topics hold {}", name(record)));
            // Everything behind the first difference may be shifted: more lines would say nothing.
            break;
        }
    }
}

/// The partition that the Java client gives to a key.
pub fn partition(key: &str, partitions: u32) -> u32 {
    (murmur2(key.as_bytes()) & 0x7fff_ffff) % partitions
}

/// Murmur2 as the Java client computes it, written from its description and not from the daemon's code.
fn murmur2(data: &[u8]) -> u32 {
    let mix = |word: u32| {
        let word = word.wrapping_mul(0x5bd1_e995);
        (word ^ (word >> 24)).wrapping_mul(0x5bd1_e995)
    };
    let whole = data.len() / 4 * 4;
    let mut hash = 0x9747_b28c ^ u32::try_from(data.len()).expect("a short key");
    for at in (0..whole).step_by(4) {
        let word = (0..4).fold(0, |word, byte| word | u32::from(data[at + byte]) << (8 * byte));
        hash = hash.wrapping_mul(0x5bd1_e995) ^ mix(word);
    }
    if whole < data.len() {
        let rest = &data[whole..];
        let word = (0..rest.len()).fold(0, |word, byte| word | u32::from(rest[byte]) << (8 * byte));
        hash = (hash ^ word).wrapping_mul(0x5bd1_e995);
    }
    hash = (hash ^ (hash >> 13)).wrapping_mul(0x5bd1_e995);
    hash ^ (hash >> 15)
}

#[test]
fn murmur2_gives_the_values_of_the_java_clients_own_test() {
    let known =
        [("21", -973_932_308_i32), ("foobar", -790_332_482), ("a-little-bit-long-string", -985_981_536), ("abc", 479_470_107)];
    for (text, hash) in known {
        assert_eq!(murmur2(text.as_bytes()), hash.cast_unsigned(), "{text}");
    }
}
