use std::sync::Arc;

use headwater_connector::{Column, Kind, Schema, Type};

use super::*;
use crate::{
    config::{Settings, resolve},
    decode::Codec,
    message,
    relation::Table,
};

fn frame(message: &[u8]) -> Vec<u8> {
    let mut bytes = vec![b'w'];
    bytes.resize(HEAD, 0);
    bytes.extend_from_slice(message);
    bytes
}

fn begin(xid: u32, commit: u64) -> Vec<u8> {
    let mut message = vec![b'B'];
    message.extend_from_slice(&commit.to_be_bytes());
    message.extend_from_slice(&0_i64.to_be_bytes());
    message.extend_from_slice(&xid.to_be_bytes());
    frame(&message)
}

fn commit(commit: u64, end: u64) -> Vec<u8> {
    let mut message = vec![b'C', 0];
    message.extend_from_slice(&commit.to_be_bytes());
    message.extend_from_slice(&end.to_be_bytes());
    message.extend_from_slice(&0_i64.to_be_bytes());
    frame(&message)
}

fn insert(relation: u32, cells: &[&str]) -> Vec<u8> {
    let mut message = vec![b'I'];
    message.extend_from_slice(&relation.to_be_bytes());
    message.push(b'N');
    message.extend_from_slice(&(cells.len() as u16).to_be_bytes());
    for cell in cells {
        message.push(b't');
        message.extend_from_slice(&(cell.len() as u32).to_be_bytes());
        message.extend_from_slice(cell.as_bytes());
    }
    frame(&message)
}

fn message(transactional: bool, end: u64, prefix: &str) -> Vec<u8> {
    let mut message = vec![b'M', u8::from(transactional)];
    message.extend_from_slice(&end.to_be_bytes());
    message.extend_from_slice(prefix.as_bytes());
    message.push(0);
    message.extend_from_slice(&2_u32.to_be_bytes());
    message.extend_from_slice(b"\0x");
    frame(&message)
}

fn settings(messages: &str) -> Settings {
    let context = headwater_connector::SourceContext { connector: "c".into(), prefix: "hw".into(), keys: Vec::new() };
    let options = serde_json::json!({ "url": "postgres://hw@localhost/d", "tables": "public.*", "messages": messages });
    resolve(&context, options).unwrap()
}

fn keepalive(end: u64) -> Vec<u8> {
    let mut bytes = vec![b'k'];
    bytes.extend_from_slice(&end.to_be_bytes());
    bytes.resize(18, 0);
    bytes
}

fn decoder(place: &str, codecs: Vec<Codec>) -> Decoder {
    let place = Place::from_position(&headwater_connector::Position::new(place)).unwrap();
    let mut decoder = Decoder::new(place, OnTruncate::Stop, Messages::of(&settings("a*")));
    let column = |_| Column { name: "c".into(), r#type: Type::String, source_type: "text".into(), nullable: true };
    let columns = codecs.iter().map(column).collect();
    let identity = vec![true; codecs.len()];
    let schema = Arc::new(Schema { table: "public.t".into(), columns, key: vec![0] });
    decoder.tables.put(Table { id: 1, raw: Vec::new(), shape: Some(Shape { schema, codecs, identity }) });
    decoder.tables.put(Table { id: 2, raw: Vec::new(), shape: None });
    decoder
}

fn feed(decoder: &mut Decoder, batch: &mut Batch, frames: &[Vec<u8>]) -> Result<Event> {
    let mut last = Event::Nothing;
    for frame in frames {
        last = decoder.apply(frame, batch)?;
    }
    Ok(last)
}

#[test]
fn ordinals_count_before_the_filter_and_the_base_is_the_end_of_the_commit() {
    let (mut decoder, mut batch) = (decoder("1:0/10", vec![Codec::Text]), Batch::default());
    let frames = [begin(7, 0x20), insert(2, &["x"]), insert(1, &["y"])];
    assert_eq!(feed(&mut decoder, &mut batch, &frames).unwrap(), Event::Row);
    assert_eq!(batch.changes()[0].ordinal, 1);
    assert_eq!(decoder.place().to_string(), "1:0/10:7@0/20+2");
    assert_eq!(feed(&mut decoder, &mut batch, &[commit(0x20, 0x28)]).unwrap(), Event::Boundary);
    assert_eq!(decoder.place().to_string(), "1:0/28");
    assert_eq!(batch.transaction_id(&batch.transactions()[0]), "7@0/20");
}

#[test]
fn a_partial_transaction_is_skipped_up_to_its_place() {
    let (mut decoder, mut batch) = (decoder("1:0/10:7@0/20+2", vec![Codec::Text]), Batch::default());
    feed(&mut decoder, &mut batch, &[keepalive(0x18), begin(7, 0x20), insert(1, &["x"])]).unwrap();
    assert_eq!(decoder.place().to_string(), "1:0/10:7@0/20+2", "not there yet, and not back either");
    feed(&mut decoder, &mut batch, &[insert(1, &["y"]), insert(1, &["z"]), commit(0x20, 0x28)]).unwrap();
    assert_eq!((batch.changes().len(), batch.changes()[0].ordinal), (1, 2));
}

#[test]
fn what_does_not_fit_the_position_stops() {
    let code = |place: &str, frames: &[Vec<u8>]| {
        let error = feed(&mut decoder(place, vec![Codec::Text]), &mut Batch::default(), frames).unwrap_err();
        (error.code().id, error.kind())
    };
    let mismatch = (codes::PARTIAL_MISMATCH.id, Kind::Lost);
    assert_eq!(code("1:0/10:7@0/20+2", &[begin(8, 0x20)]), mismatch);
    assert_eq!(code("1:0/10:7@0/20+2", &[begin(7, 0x21)]), mismatch);
    assert_eq!(code("1:0/10:7@0/20+2", &[keepalive(0x21)]), mismatch);
    assert_eq!(code("1:0/10:7@0/20+2", &[begin(7, 0x20), insert(1, &["x"]), commit(0x20, 0x28)]), mismatch);
    assert_eq!(code("1:0/10", &[begin(7, 0xf)]), (codes::STREAM_BEHIND.id, Kind::Bug));
    let protocol = (codes::PROTOCOL.id, Kind::Bug);
    assert_eq!(code("1:0/10", &[insert(1, &["x"])]), protocol);
    assert_eq!(code("1:0/10", &[begin(7, 0x20), begin(8, 0x30)]), protocol);
    assert_eq!(code("1:0/10", &[begin(7, 0x20), insert(3, &["x"])]), protocol);
    assert_eq!(code("1:0/10", &[begin(7, 0x20), insert(1, &["x", "y"])]), protocol);
    assert_eq!(code("1:0/10", &[begin(7, 0x20), commit(0x30, 0x38)]), protocol);
    assert_eq!(code("1:0/10", &[frame(b"?")]), protocol);
    assert_eq!(code("1:0/10", &[message(true, 0x18, "a")]), protocol);
    assert_eq!(code("1:0/10", &[begin(7, 0x20), message(false, 0x18, "a")]), protocol);
    assert_eq!(code("1:0/10:7@0/20+2", &[message(false, 0x28, "a")]), mismatch);
}

#[test]
fn a_keepalive_inside_a_transaction_is_no_progress() {
    let (mut decoder, mut batch) = (decoder("1:0/10", vec![Codec::Text]), Batch::default());
    feed(&mut decoder, &mut batch, &[begin(7, 0x20), keepalive(0xff)]).unwrap();
    assert_eq!(decoder.base(), Lsn(0x10));
    let last = feed(&mut decoder, &mut batch, &[commit(0x20, 0x28), keepalive(0xff)]).unwrap();
    assert_eq!((last, decoder.base()), (Event::Idle(Lsn(0xff)), Lsn(0xff)));
}

#[test]
fn a_lone_message_is_published_by_its_own_place() {
    let (mut decoder, mut batch) = (decoder("1:0/10", vec![Codec::Text]), Batch::default());
    // At or before the base it was published, by whoever moved the base there.
    assert_eq!(feed(&mut decoder, &mut batch, &[message(false, 0x10, "a")]).unwrap(), Event::Nothing);
    assert_eq!(feed(&mut decoder, &mut batch, &[message(false, 0x18, "ab")]).unwrap(), Event::Boundary);
    assert_eq!((decoder.place().to_string().as_str(), decoder.changes_end()), ("1:0/18", Lsn(0x18)));
    // One that nobody wants is no change, but the log was read up to there.
    assert_eq!(feed(&mut decoder, &mut batch, &[message(false, 0x1a, "b")]).unwrap(), Event::Nothing);
    assert_eq!((decoder.place().to_string().as_str(), decoder.changes_end()), ("1:0/1A", Lsn(0x18)));
    assert_eq!(batch.changes().len(), 1);
    assert_eq!(batch.transaction_id(&batch.transactions()[0]), "message@0/18");
    let row = batch.changes()[0].after.unwrap();
    let values: Vec<Value<'_>> = batch.values(row).collect();
    assert_eq!(values, [Value::Text("ab"), Value::Bytes(b"\0x"), Value::Bool(false)]);
}

#[test]
fn a_lone_message_leaves_a_partial_place_where_it_is() {
    let (mut decoder, mut batch) = (decoder("1:0/10:7@0/20+1", vec![Codec::Text]), Batch::default());
    feed(&mut decoder, &mut batch, &[message(false, 0x18, "a")]).unwrap();
    assert_eq!(decoder.place().to_string(), "1:0/18:7@0/20+1");
    feed(&mut decoder, &mut batch, &[begin(7, 0x20), insert(1, &["x"]), message(true, 0x19, "a"), commit(0x20, 0x28)]).unwrap();
    let told: Vec<(u32, u64)> = batch.changes().iter().map(|change| (change.transaction, change.ordinal)).collect();
    assert_eq!(told, [(0, 0), (1, 1)]);
}

#[test]
fn messages_that_nobody_wants_are_counted_and_announce_nothing() {
    let (mut decoder, mut batch) = (decoder("1:0/10", vec![Codec::Text]), Batch::default());
    feed(&mut decoder, &mut batch, &[begin(7, 0x20), message(true, 0x18, "b")]).unwrap();
    assert!(batch.transactions().is_empty());
    feed(&mut decoder, &mut batch, &[message(true, 0x18, "a"), insert(1, &["x"])]).unwrap();
    assert_eq!(batch.changes().iter().map(|change| change.ordinal).collect::<Vec<_>>(), [1, 2]);
}

#[test]
fn a_server_that_sends_no_messages_is_named() {
    let code = |messages: &str, major| message::unsupported(&settings(messages), major).map(|error| error.code().id);
    assert_eq!([code("a", 13), code("a", 14)], [Some(codes::TOO_OLD.id), None]);
}

proptest::proptest! {
    #[test]
    fn arbitrary_messages_never_panic(
        messages in proptest::collection::vec(
            (proptest::sample::select(b"BCIUDTMRO".to_vec()), proptest::collection::vec(0_u8..3, 0..40)), 0..12)
    ) {
        let (mut decoder, mut batch) = (decoder("1:0/10", vec![Codec::Text]), Batch::default());
        let _ = decoder.apply(&begin(7, 0x20), &mut batch);
        for (tag, rest) in messages {
            let _ = decoder.apply(&frame(&[&[tag][..], &rest].concat()), &mut batch);
            let _ = decoder.apply(&rest, &mut batch);
        }
        decoder.abandon(&mut batch);
    }
}
