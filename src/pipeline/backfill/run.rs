//! What is still to be read of one table, and what of it is on its way. Pure.
//!
//! A range is read behind its last chunk, at most two chunks ahead of what is published. A chunk that cannot be used takes the later ones
//! of its range with it.

use std::{sync::Arc, time::Duration};

use headwater_connector::{Chunk, ChunkRequest, Cursor, Snapshot};

use super::{desk::Job, reconcile::Place};
use crate::log::checkpoint::{KeyRange, TableBackfill};

/// Rows of a first chunk, and the fewest and the most of any.
const FIRST_ROWS: usize = 2_000;
const MIN_ROWS: usize = 50;
const MAX_ROWS: usize = 50_000;
/// Bytes of a chunk.
const MAX_BYTES: usize = 4 << 20;
/// A chunk should take about as long as this: long enough to be worth it, short enough to be thrown away.
const FAST: Duration = Duration::from_millis(100);
const SLOW: Duration = Duration::from_millis(500);
/// Chunks of one range that are on their way or wait to be published.
const AHEAD: usize = 2;
/// Keys that are looked up at once.
const LOOK_UP: usize = 500;
/// Ranges that a large table is cut into.
const PARTS: usize = 16;

/// Tells a chunk from every other; later ones are greater.
pub type Ticket = u64;

/// One range: where the next chunk begins.
struct Range {
    id: u32,
    next: Option<Cursor>,
    until: Option<Cursor>,
    /// Everything was asked for.
    exhausted: bool,
    /// In the order of the range.
    flights: Vec<Flight>,
}

/// A chunk on its way.
struct Flight {
    ticket: Ticket,
    after: Option<Cursor>,
    /// A snapshot that is older than the chunk's.
    floor: Option<Arc<dyn Snapshot>>,
    arrived: bool,
}

/// See the module's page.
pub struct Run {
    /// Index of the table's topic.
    pub topic: u32,
    filter: Option<String>,
    ranges: Vec<Range>,
    /// Whether the database was asked to cut the table; it is asked once.
    split: Splitting,
    rows: usize,
    /// After all rows: the search for keys that the table lacks.
    burial: Option<Burial>,
}

/// Keys that are looked up: which chunk that is, how many they are, and a snapshot that is older than the chunk's.
type LookUp = (Ticket, usize, Option<Arc<dyn Snapshot>>);

/// A key as the topic has it, and as the server takes it.
pub type Candidate = (Vec<u8>, Cursor);

/// Keys of the topic that the table may lack.
struct Burial {
    /// Where to search next; none when everything was searched.
    place: Option<Place>,
    searching: bool,
    /// Not looked up yet.
    candidates: Vec<Candidate>,
    flight: Option<LookUp>,
    /// How many are looked up at once.
    at_once: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Splitting {
    Wanted,
    Asked,
    Settled,
}

impl Run {
    /// Continues what the checkpoint knows.
    pub fn new(topic: u32, known: &TableBackfill) -> Self {
        let range = |range: &KeyRange| Range {
            id: range.id,
            next: range.after.clone(),
            until: range.until.clone(),
            exhausted: false,
            flights: Vec::new(),
        };
        // Only a table that nobody has begun to read is cut.
        let untouched =
            known.rows == 0 && matches!(known.ranges.as_slice(), [only] if only.after.is_none() && only.until.is_none());
        let split = if untouched { Splitting::Wanted } else { Splitting::Settled };
        let ranges = known.ranges.iter().map(range).collect();
        Self { topic, filter: known.filter.clone(), ranges, split, rows: FIRST_ROWS, burial: None }
    }

    /// What to ask next, if anything.
    pub fn next_job(&self, table: &str, ticket: Ticket) -> Option<Job> {
        if self.split == Splitting::Wanted {
            return Some(Job::Split(table.to_owned(), PARTS));
        }
        if self.split == Splitting::Asked {
            return None;
        }
        if let Some(burial) = &self.burial {
            return burial.next_job(table, ticket);
        }
        let is_free =
            |range: &&Range| !range.exhausted && range.flights.len() < AHEAD && range.flights.iter().all(|flight| flight.arrived);
        let range = self.ranges.iter().find(is_free)?;
        let request = ChunkRequest {
            table: table.to_owned(),
            after: range.next.clone(),
            until: range.until.clone(),
            filter: self.filter.clone(),
            keys: None,
            max_rows: self.rows,
            max_bytes: MAX_BYTES,
            gate: None,
        };
        Some(Job::Chunk(request, ticket))
    }

    /// The job is on its way; its snapshot will be newer than `floor`.
    pub fn begin(&mut self, job: &Job, floor: Option<Arc<dyn Snapshot>>) {
        match job {
            Job::Split(..) => self.split = Splitting::Asked,
            Job::Gate(_) => {}
            Job::Search(..) => self.burial.iter_mut().for_each(|burial| burial.searching = true),
            Job::Chunk(ChunkRequest { keys: Some(keys), .. }, ticket) => {
                self.burial.iter_mut().for_each(|burial| burial.flight = Some((*ticket, keys.len(), floor.clone())));
            }
            Job::Chunk(request, ticket) => {
                let range = self
                    .ranges
                    .iter_mut()
                    .find(|range| !range.exhausted && range.next == request.after && range.until == request.until);
                if let Some(range) = range {
                    range.flights.push(Flight { ticket: *ticket, after: request.after.clone(), floor, arrived: false });
                }
            }
        }
    }

    /// The database's bounds make ranges of the one that there was.
    pub fn split(&mut self, bounds: Vec<Cursor>) {
        self.split = Splitting::Settled;
        let mut after = None;
        let mut ranges = Vec::with_capacity(bounds.len() + 1);
        for until in bounds.into_iter().map(Some).chain([None]) {
            let id = ranges.len() as u32;
            ranges.push(Range { id, next: after.clone(), until: until.clone(), exhausted: false, flights: Vec::new() });
            after = until;
        }
        self.ranges = ranges;
    }

    /// Whether the chunk is still wanted.
    pub fn expects(&self, ticket: Ticket) -> bool {
        self.is_burial(ticket) || self.find(ticket).is_some_and(|(range, at)| !self.ranges[range].flights[at].arrived)
    }

    /// Whether a chunk that has arrived is still wanted.
    pub fn expects_ready(&self, ticket: Ticket) -> bool {
        self.is_burial(ticket) || self.find(ticket).is_some()
    }

    fn find(&self, ticket: Ticket) -> Option<(usize, usize)> {
        self.ranges
            .iter()
            .enumerate()
            .find_map(|(at, range)| range.flights.iter().position(|flight| flight.ticket == ticket).map(|flight| (at, flight)))
    }

    /// A chunk has arrived: the next one begins behind it.
    pub fn arrived(&mut self, ticket: Ticket, chunk: &Chunk, rows: usize, took: Duration) {
        let Some((range, at)) = self.find(ticket) else { return };
        let range = &mut self.ranges[range];
        range.flights[at].arrived = true;
        range.next.clone_from(&chunk.end);
        range.exhausted = chunk.end.is_none();
        if took < FAST && rows >= self.rows {
            self.rows = (self.rows * 2).min(MAX_ROWS);
        } else if took > SLOW {
            self.shrink(rows);
        }
    }

    /// Asks for less from now on.
    pub fn shrink(&mut self, rows: usize) {
        self.rows = (rows / 2).clamp(MIN_ROWS, MAX_ROWS);
    }

    /// A chunk was not read: it is asked for again.
    pub fn failed(&mut self, ticket: Ticket) {
        self.end_burial_flight(ticket);
        if let Some((range, at)) = self.find(ticket) {
            self.ranges[range].flights.truncate(at);
        }
    }

    /// A chunk cannot be used: it and what was read behind it are read again.
    pub fn again(&mut self, ticket: Ticket) {
        self.end_burial_flight(ticket);
        if let Some((range, at)) = self.find(ticket) {
            let range = &mut self.ranges[range];
            range.next.clone_from(&range.flights[at].after);
            range.exhausted = false;
            range.flights.truncate(at);
        }
    }

    /// A chunk becomes a log transaction: so does the progress that it means.
    pub fn emitted(&mut self, ticket: Ticket, chunk: &Chunk, known: &mut TableBackfill) {
        let Some((range, at)) = self.find(ticket) else { return };
        self.ranges[range].flights.remove(at);
        if chunk.end.is_none() {
            self.ranges.remove(range);
        }
        known.ranges = self.ranges.iter().map(Range::committed).collect();
    }

    /// The chunk on its way that was asked for first, and a snapshot that is older than its own.
    pub fn oldest_floor(&self) -> Option<(Ticket, Option<Arc<dyn Snapshot>>)> {
        let flights = self.ranges.iter().flat_map(|range| &range.flights).map(|flight| (flight.ticket, flight.floor.clone()));
        let burial = self.burial.iter().filter_map(|burial| burial.flight.clone()).map(|(ticket, _, floor)| (ticket, floor));
        flights.chain(burial).min_by_key(|(ticket, _)| *ticket)
    }

    /// All rows are read: from now on it is looked for keys that the table lacks.
    pub fn begin_burial(&mut self) {
        self.burial = Some(Burial {
            place: Some(Place::default()),
            searching: false,
            candidates: Vec::new(),
            flight: None,
            at_once: LOOK_UP,
        });
    }

    /// Whether the ticket is that of keys that are looked up.
    pub fn is_burial(&self, ticket: Ticket) -> bool {
        self.burial.as_ref().and_then(|burial| burial.flight.as_ref()).is_some_and(|(flight, ..)| *flight == ticket)
    }

    fn end_burial_flight(&mut self, ticket: Ticket) {
        if self.is_burial(ticket)
            && let Some(burial) = &mut self.burial
        {
            burial.flight = None;
        }
    }

    /// A look-up was cut short: its keys are looked up again, fewer at once.
    pub fn look_up_fewer(&mut self, ticket: Ticket) {
        self.end_burial_flight(ticket);
        if let Some(burial) = &mut self.burial {
            burial.at_once = (burial.at_once / 2).max(1);
        }
    }

    /// A search has ended, or failed if there is nothing.
    pub fn found(&mut self, found: Option<(Vec<Candidate>, Option<Place>)>) {
        if let Some(burial) = &mut self.burial {
            burial.searching = false;
            if let Some((candidates, next)) = found {
                burial.candidates.extend(candidates);
                burial.place = next;
            }
        }
    }

    /// The keys that were looked up.
    pub fn looked_up(&mut self, ticket: Ticket) -> Vec<Vec<u8>> {
        let Some(burial) = &mut self.burial else { return Vec::new() };
        match burial.flight.take() {
            Some((flight, count, _)) if flight == ticket => burial.candidates.drain(..count).map(|(key, _)| key).collect(),
            other => {
                burial.flight = other;
                Vec::new()
            }
        }
    }

    /// Whether everything was searched and looked up.
    pub fn is_buried(&self) -> bool {
        let over = |burial: &Burial| burial.place.is_none() && burial.candidates.is_empty() && burial.flight.is_none();
        self.burial.as_ref().is_some_and(over)
    }
}

impl Burial {
    fn next_job(&self, table: &str, ticket: Ticket) -> Option<Job> {
        if self.flight.is_some() || self.searching || self.candidates.is_empty() {
            return None;
        }
        let keys = self.candidates.iter().take(self.at_once).map(|(_, cursor)| cursor.clone()).collect();
        let request = ChunkRequest {
            table: table.to_owned(),
            after: None,
            until: None,
            filter: None,
            keys: Some(Arc::new(keys)),
            max_rows: usize::MAX,
            max_bytes: usize::MAX,
            gate: None,
        };
        Some(Job::Chunk(request, ticket))
    }

    /// Whether the topic has to be searched further.
    fn wants_search(&self) -> bool {
        !self.searching && self.flight.is_none() && self.candidates.is_empty() && self.place.is_some()
    }
}

impl Run {
    /// Where to search the topic now, if that is what comes next.
    pub fn next_search(&self) -> Option<Place> {
        self.burial.as_ref().filter(|burial| burial.wants_search()).and_then(|burial| burial.place)
    }
}

impl Range {
    fn committed(&self) -> KeyRange {
        let after = self.flights.first().map_or(&self.next, |flight| &flight.after);
        KeyRange { id: self.id, after: after.clone(), until: self.until.clone() }
    }
}

#[cfg(test)]
mod tests {
    use headwater_connector::Position;

    use super::{super::fresh, *};

    struct All;

    impl Snapshot for All {
        fn sees(&self, _: &str) -> bool {
            true
        }
    }

    fn chunk(end: Option<&str>) -> Chunk {
        let end = end.map(|end| vec![end.to_owned()]);
        Chunk { seen: Arc::new(All), barrier: Position::new("1"), end, table_id: "7".into() }
    }

    /// Asks for the next chunk and returns where it begins.
    fn ask(run: &mut Run, ticket: Ticket) -> Option<Option<String>> {
        let job = run.next_job("t", ticket)?;
        run.begin(&job, None);
        let Job::Chunk(request, _) = job else { panic!("a chunk") };
        Some(request.after.map(|after| after[0].clone()))
    }

    fn settled(known: &TableBackfill) -> Run {
        let mut run = Run::new(0, known);
        run.split(Vec::new());
        run
    }

    #[test]
    fn progress_is_what_was_emitted_and_not_what_was_read() {
        let mut known = fresh();
        let mut run = settled(&known);
        assert_eq!(ask(&mut run, 1), Some(None));
        assert_eq!(ask(&mut run, 2), None, "one at a time in a range");
        run.arrived(1, &chunk(Some("10")), 10, FAST);
        assert_eq!(ask(&mut run, 2), Some(Some("10".into())));
        run.arrived(2, &chunk(Some("20")), 10, FAST);
        assert_eq!(ask(&mut run, 3), None, "no more than two ahead");
        run.emitted(1, &chunk(Some("10")), &mut known);
        assert_eq!(known.ranges[0].after, Some(vec!["10".to_owned()]));
        assert_eq!(ask(&mut run, 3), Some(Some("20".into())));
        run.arrived(3, &chunk(None), 1, FAST);
        run.emitted(2, &chunk(Some("20")), &mut known);
        assert_eq!(ask(&mut run, 4), None, "nothing is left");
        run.emitted(3, &chunk(None), &mut known);
        assert!(known.ranges.is_empty());
    }

    #[test]
    fn a_chunk_that_cannot_be_used_takes_the_later_ones_with_it() {
        let mut known = fresh();
        let mut run = settled(&known);
        ask(&mut run, 1);
        run.arrived(1, &chunk(Some("10")), 10, FAST);
        ask(&mut run, 2);
        run.arrived(2, &chunk(None), 10, FAST);
        run.again(1);
        assert!(!run.expects_ready(1) && !run.expects_ready(2));
        assert_eq!(ask(&mut run, 3), Some(None), "from where the first one began");
        run.failed(3);
        assert_eq!(ask(&mut run, 4), Some(None));
        run.arrived(4, &chunk(None), 3, FAST);
        run.emitted(4, &chunk(None), &mut known);
        assert!(known.ranges.is_empty());
    }

    #[test]
    fn ranges_are_read_side_by_side_and_survive_a_restart() {
        let mut known = fresh();
        let mut run = Run::new(0, &known);
        let Some(job @ Job::Split(..)) = run.next_job("t", 0) else { panic!("cut first") };
        run.begin(&job, None);
        assert!(run.next_job("t", 1).is_none());
        run.split(vec![vec!["m".into()]]);
        assert_eq!(ask(&mut run, 1), Some(None));
        assert_eq!(ask(&mut run, 2), Some(Some("m".into())));
        assert_eq!(run.oldest_floor().map(|(ticket, _)| ticket), Some(1));
        run.arrived(2, &chunk(Some("q")), 5, FAST);
        run.emitted(2, &chunk(Some("q")), &mut known);
        known.rows = 5;
        let mut again = Run::new(0, &known);
        assert_eq!(ask(&mut again, 3), Some(None));
        assert_eq!(ask(&mut again, 4), Some(Some("q".into())));
        again.arrived(3, &chunk(None), 5, FAST);
        again.emitted(3, &chunk(None), &mut known);
        assert_eq!(known.ranges.len(), 1);
        assert_eq!((known.ranges[0].id, known.ranges[0].after.as_deref()), (1, Some(["q".to_owned()].as_slice())));
    }

    #[test]
    fn chunks_grow_while_they_are_fast_and_shrink_when_they_are_slow() {
        let mut run = settled(&fresh());
        let rows = |run: &Run| match run.next_job("t", 1) {
            Some(Job::Chunk(request, _)) => request.max_rows,
            _ => panic!("a chunk"),
        };
        let first = rows(&run);
        ask(&mut run, 1);
        run.arrived(1, &chunk(Some("1")), first, FAST / 2);
        assert_eq!(rows(&run), first * 2);
        ask(&mut run, 2);
        run.arrived(2, &chunk(Some("2")), first * 2, SLOW * 2);
        run.emitted(1, &chunk(Some("1")), &mut fresh());
        assert_eq!(rows(&run), first);
        run.shrink(1);
        assert_eq!(rows(&run), MIN_ROWS);
    }
}
