//! Real binlog files, and what is left of them after damage, through the whole decoder.
//!
//! `tests/data` holds a file of each flavour: rows of every kind of type before and after an ALTER TABLE, and packed ones.

use std::sync::Arc;

use headwater_connector::{Batch, Limits, Op, Result, SourceContext, Value};
use proptest::prelude::*;
use serde_json::json;

use crate::{
    binlog::kind,
    config::{self, Settings},
    connection::Flavour,
    decoder::{Decoder, Event},
    error::torn,
    gtid::GtidSet,
    payload,
    position::{Place, Spot},
    relation::{self, Table},
    table_map::TableMap,
};

const MYSQL: &[u8] = include_bytes!("../tests/data/mysql-8.0.binlog");
const MARIADB: &[u8] = include_bytes!("../tests/data/mariadb-10.11.binlog");

fn settings() -> Arc<Settings> {
    let context = SourceContext { connector: "shop".into(), prefix: "hw".into(), keys: Vec::new() };
    let options = json!({ "url": "mysql://u@localhost/", "tables": "shop.*", "backfill": "never", "max_event_bytes": 1 << 20 });
    Arc::new(config::resolve(&context, options).expect("good options"))
}

fn events(file: &[u8]) -> Vec<Vec<u8>> {
    let mut rest = &file[4..];
    let mut found = Vec::new();
    while let Ok(Some(event)) = payload::next_event(&mut rest) {
        found.push(event.to_vec());
    }
    found
}

/// What the source does around the decoder, without a server to ask.
struct Reader {
    settings: Arc<Settings>,
    flavour: Flavour,
    decoder: Decoder,
    batch: Batch,
}

impl Reader {
    fn new(flavour: Flavour) -> Self {
        let settings = settings();
        let set = if flavour == Flavour::Mysql { GtidSet::parse_mysql("") } else { GtidSet::parse_maria("") };
        let place = Place { set: set.expect("an empty set"), from: None, partial: None, spot: Spot::default() };
        let decoder = Decoder::new(place, true, Arc::clone(&settings));
        Self { settings, flavour, decoder, batch: Batch::default() }
    }

    fn describe(&mut self, body: &[u8]) -> Result<()> {
        let map = TableMap::parse(body, self.flavour).map_err(|_| torn("a table's description"))?;
        let shape = relation::shape(&self.settings, self.flavour, &map, None)?;
        self.decoder.tables.put(map.id, Table { name: String::new(), fields: map.fields(), shape: Some(shape) });
        Ok(())
    }

    fn take(&mut self, event: &[u8]) -> Result<()> {
        match self.decoder.apply(event, &mut self.batch)? {
            Event::Table => {
                let body = self.decoder.body(event).to_vec();
                self.describe(&body)
            }
            Event::Unpacked(bytes) => self.unpacked(&bytes),
            _ => Ok(()),
        }
    }

    fn unpacked(&mut self, bytes: &[u8]) -> Result<()> {
        let mut rest = bytes;
        while let Some(event) = payload::next_event(&mut rest).map_err(|_| torn("a compressed transaction"))? {
            match self.decoder.apply_unpacked(event, &mut self.batch)? {
                Event::Table => self.describe(event.get(19..).unwrap_or_default())?,
                Event::Unpacked(bytes) => self.unpacked(&bytes)?,
                _ => {}
            }
        }
        Ok(())
    }

    fn read(&mut self, events: &[Vec<u8>]) -> Result<()> {
        self.decoder.begin_batch(&self.batch, &Limits::default());
        events.iter().try_for_each(|event| self.take(event))
    }
}

#[test]
fn the_files_are_read_whole() {
    for (flavour, file) in [(Flavour::Mysql, MYSQL), (Flavour::Mariadb, MARIADB)] {
        let mut reader = Reader::new(flavour);
        reader.read(&events(file)).unwrap_or_else(|error| panic!("{flavour:?}: {error}"));
        let ops: Vec<Op> = reader.batch.changes().iter().map(|change| change.op).collect();
        assert_eq!(ops, [Op::Insert, Op::Insert, Op::Update, Op::Update, Op::Delete, Op::Insert, Op::Insert], "{flavour:?}");
        let row = reader.batch.changes()[0].after.expect("a row");
        // The last stands behind a year and a geometry.
        let [id, name, m] = [0, 1, 16].map(|at| reader.batch.value(row, at));
        assert_eq!((id, name, m), (Value::Uint(1), Value::Text("café"), Value::Int(-5)), "{flavour:?}");
        assert!(reader.decoder.is_between());
    }
}

/// The number that old protocols gave to no table is one that a server comes to after sixteen million.
#[test]
fn a_table_whose_number_once_meant_none_keeps_its_rows() {
    let mut events = events(MARIADB);
    let is_of_table = |event: &[u8]| event[4] == kind::TABLE_MAP || kind::is_rows(event[4]);
    let last = events.iter().filter(|event| is_of_table(event)).map(|event| event[19..25].to_vec()).max().expect("a table");
    for event in events.iter_mut().filter(|event| is_of_table(event) && event[19..25] == *last) {
        event[19..25].copy_from_slice(&0x00ff_ffff_u64.to_le_bytes()[..6]);
        sign(event);
    }
    let (mut reader, mut plain) = (Reader::new(Flavour::Mariadb), Reader::new(Flavour::Mariadb));
    reader.read(&events).expect("the same events");
    plain.read(&self::events(MARIADB)).expect("the file");
    assert_eq!(reader.batch.changes().len(), plain.batch.changes().len());
}

/// A file may end between two events of what its server was writing when it died.
#[test]
fn what_a_file_ends_within_never_happened() {
    let events = events(MARIADB);
    let end = events.iter().rposition(|event| event[4] == kind::XID).expect("an end");
    let begin = events[..end].iter().rposition(|event| event[4] == kind::MARIA_GTID).expect("a beginning");
    // The transaction comes again in another file, and then with its end.
    let torn = [&events[..end], &events[..1], &events[begin..]].concat();
    let (mut reader, mut plain) = (Reader::new(Flavour::Mariadb), Reader::new(Flavour::Mariadb));
    reader.read(&torn).expect("two files");
    plain.read(&events).expect("one file");
    assert_eq!(reader.batch.changes().len(), plain.batch.changes().len());
    assert!(reader.decoder.is_between());
}

/// The checksum of what is in an event now, so that the damage gets past it.
fn sign(event: &mut [u8]) {
    if let Some((covered, sum)) = event.split_last_chunk_mut::<4>() {
        *sum = crc32fast::hash(covered).to_le_bytes();
    }
}

fn damage(events: &mut [Vec<u8>], wounds: &[(u16, u16, u8)], is_signed: bool) {
    for (event, at, byte) in wounds {
        let count = events.len();
        let event = &mut events[usize::from(*event) % count];
        let len = event.len();
        event[usize::from(*at) % len] = *byte;
        if is_signed {
            sign(event);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn damaged_files_are_read_or_refused(
        is_mysql: bool,
        is_signed in prop::bool::weighted(0.9),
        wounds in proptest::collection::vec((any::<u16>(), any::<u16>(), any::<u8>()), 1..6),
    ) {
        let (flavour, file) = if is_mysql { (Flavour::Mysql, MYSQL) } else { (Flavour::Mariadb, MARIADB) };
        let mut events = events(file);
        damage(&mut events, &wounds, is_signed);
        let mut reader = Reader::new(flavour);
        // Whatever a count or a length claims by now, no more is held than what came and what may be unpacked.
        let _ = reader.read(&events);
        prop_assert!(reader.batch.size_bytes() < 64 << 20, "{}", reader.batch.size_bytes());
    }

    #[test]
    fn torn_files_are_read_or_refused(is_mysql: bool, event: u16, len: u16) {
        let (flavour, file) = if is_mysql { (Flavour::Mysql, MYSQL) } else { (Flavour::Mariadb, MARIADB) };
        let mut events = events(file);
        let count = events.len();
        let event = &mut events[usize::from(event) % count];
        let len = (usize::from(len) % event.len()).max(19);
        event.truncate(len);
        event[9..13].copy_from_slice(&(len as u32).to_le_bytes());
        sign(event);
        let _ = Reader::new(flavour).read(&events);
    }
}
