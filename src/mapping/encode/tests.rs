use headwater_connector::{Column, Table, Type, Value};

use super::*;
use crate::mapping::rule::Events;

fn schema() -> Arc<Schema> {
    let column = |name: &str, r#type| Column { name: name.into(), r#type, source_type: "x".into(), nullable: false };
    Arc::new(Schema {
        table: "public.orders".into(),
        columns: vec![column("id", Type::Int64), column("note", Type::String), column("secret", Type::String)],
        key: vec![0],
    })
}

fn encoder(events: &str, schema: &Arc<Schema>) -> Encoder {
    let events: Events = serde_json::from_str(events).unwrap();
    let tables = [Table { schema: Arc::clone(schema), estimated_rows: None, readable: true }];
    let routes = Routes::new("shop", &events, &tables).unwrap();
    let dead = events.on_data_error == crate::mapping::rule::OnDataError::DeadLetter;
    let partitions = routes.iter().map(|route| (route.topic.clone(), 3)).collect();
    Encoder::new("shop", routes, InternalTopics::new("headwater", "shop"), partitions, BTreeMap::new(), (dead, false))
}

fn row(batch: &mut Batch, values: &[Value<'_>]) -> Row {
    let start = batch.begin_row();
    values.iter().for_each(|value| batch.push(*value));
    batch.end_row(start)
}

fn lines(out: &Transaction) -> Vec<String> {
    let text = |span| String::from_utf8(out.bytes(span).to_vec()).unwrap();
    let line = |record: &crate::log::Record| {
        let headers: Vec<String> =
            out.headers(record).iter().map(|header| format!("{}={}", header.name, text(header.value))).collect();
        let value = record.value.map_or_else(|| "null".to_owned(), text);
        format!("{} {} {} {}", out.topics()[record.topic as usize], text(record.key), value, headers.join(" "))
    };
    out.records().iter().map(line).collect()
}

const PLACE: Place = Place { era: 1, seq: 0x2a };

#[test]
fn a_changed_key_is_a_tombstone_and_a_new_row_in_one_transaction() {
    let schema = schema();
    let mut encoder = encoder("{}", &schema);
    let mut batch = Batch::default();
    batch.begin_transaction("7@0/1", 1_000_000);
    let index = batch.schema_index(&schema);
    let before = row(&mut batch, &[Value::Text("1"), Value::Unchanged, Value::Unchanged]);
    let after = row(&mut batch, &[Value::Text("2"), Value::Text("x"), Value::Unchanged]);
    batch.push_change(Op::Update, index, 0, Before::Key(before), Some(after));
    let mut out = encoder.transaction();
    let encoded = encoder.encode(&batch, PLACE, &mut out, &mut ()).unwrap();
    assert_eq!(encoded, Encoded { events: 2, dead_letters: 0, state_changed: true });
    let lines = lines(&out);
    assert!(lines[0].starts_with(r#"headwater.shop.schema {"schema":""#), "{}", lines[0]);
    assert!(
        lines[1].starts_with(r#"shop.orders {"id":1} null hw.op=d hw.pos=0001-00000000002a-00000000 hw.tx=7@0/1 hw.schema="#)
    );
    assert!(lines[2].starts_with(
        r#"shop.orders {"id":2} {"id":2,"note":"x"} hw.op=c hw.pos=0001-00000000002a-00000001 hw.tx=7@0/1 hw.schema="#
    ));
    assert!(lines[2].ends_with(r#"hw.absent=["secret"]"#), "{}", lines[2]);
}

#[test]
fn an_update_that_carries_the_same_key_is_an_update() {
    let schema = schema();
    let mut encoder = encoder(r#"{"tables":{"public.orders":{"exclude":["secret"]}}}"#, &schema);
    let mut batch = Batch::default();
    batch.begin_transaction("7@0/1", 0);
    let index = batch.schema_index(&schema);
    let image = row(&mut batch, &[Value::Text("1"), Value::Text("x"), Value::Text("hidden")]);
    batch.push_change(Op::Update, index, 0, Before::Full(image), Some(image));
    batch.push_change(Op::Delete, index, 1, Before::Full(image), None);
    let mut out = encoder.transaction();
    encoder.encode(&batch, PLACE, &mut out, &mut ()).unwrap();
    let lines = lines(&out);
    assert!(lines[1].contains(r#"{"id":1} {"id":1,"note":"x"} hw.op=u"#), "{}", lines[1]);
    assert!(lines[2].contains(r#"{"id":1} null hw.op=d"#), "{}", lines[2]);
    assert!(!lines.concat().contains("hidden") && !lines[0].contains("secret"));
}

#[test]
fn a_schema_is_announced_once_and_again_when_it_changes() {
    let schema = schema();
    let mut encoder = encoder("{}", &schema);
    let mut one = |schema: &Arc<Schema>| {
        let mut batch = Batch::default();
        batch.begin_transaction("7@0/1", 0);
        let index = batch.schema_index(schema);
        let values = vec![Value::Text("1"); schema.columns.len()];
        let image = row(&mut batch, &values);
        batch.push_change(Op::Insert, index, 0, Before::None, Some(image));
        let mut out = encoder.transaction();
        encoder.encode(&batch, PLACE, &mut out, &mut ()).unwrap().state_changed
    };
    assert!(one(&schema));
    assert!(!one(&schema));
    assert!(!one(&Arc::new((*schema).clone())), "an equal schema after a reconnect is not news");
    let mut wider = (*schema).clone();
    wider.columns.push(Column { name: "new".into(), r#type: Type::Date, source_type: "date".into(), nullable: true });
    assert!(one(&Arc::new(wider)));
}

#[test]
fn a_row_without_key_stops_or_becomes_a_dead_letter() {
    let schema = schema();
    let mut batch = Batch::default();
    batch.begin_transaction("7@0/1", 0);
    let index = batch.schema_index(&schema);
    let image = row(&mut batch, &[Value::Null, Value::Text("x"), Value::Invalid(&[0xff])]);
    batch.push_change(Op::Insert, index, 0, Before::None, Some(image));
    let mut strict = encoder("{}", &schema);
    let error = strict.encode(&batch, PLACE, &mut strict.transaction(), &mut ()).unwrap_err();
    assert_eq!(error.code().id, "HW1155");
    let mut lenient = encoder(r#"{"on_data_error":"dead_letter"}"#, &schema);
    let mut out = lenient.transaction();
    let encoded = lenient.encode(&batch, PLACE, &mut out, &mut ()).unwrap();
    assert_eq!((encoded.events, encoded.dead_letters), (1, 1));
    let line = lines(&out).pop().unwrap();
    assert!(line.starts_with("headwater.shop.dead ") && line.contains(r#""columns":{"id":null,"note":"x"}"#), "{line}");
}

#[test]
fn a_truncate_reaches_every_partition() {
    let schema = schema();
    let mut encoder = encoder("{}", &schema);
    let mut batch = Batch::default();
    batch.begin_transaction("7@0/1", 0);
    let index = batch.schema_index(&schema);
    batch.push_change(Op::Truncate, index, 0, Before::None, None);
    let mut out = encoder.transaction();
    encoder.encode(&batch, PLACE, &mut out, &mut ()).unwrap();
    let partitions: Vec<u32> = out.records()[1..].iter().map(|record| record.partition).collect();
    assert_eq!(partitions, [0, 1, 2]);
    assert!(lines(&out)[3].contains(r#"{"hw.truncate":true} null hw.op=t"#));
}
