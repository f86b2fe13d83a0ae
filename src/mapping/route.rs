//! Which table goes to which topic: rules applied to the tables that are there, with all faults at once.

use std::{collections::BTreeMap, sync::Arc};

use headwater_connector::{Error, Schema, Table};

use super::{
    codes,
    rule::{Events, TableRule, TopicTemplate},
};
use crate::log::topic;

/// Where the events of one table go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// `schema.table`.
    pub table: String,
    /// What a row is called.
    pub entity: String,
    /// The topic.
    pub topic: String,
    /// Columns to publish; none publishes all.
    pub columns: Option<ColumnChoice>,
    /// Rows in the table, roughly; none if unknown.
    pub estimated_rows: Option<u64>,
    /// Whether it has rows that can be read.
    pub readable: bool,
    /// The table as it is.
    pub schema: Arc<Schema>,
}

/// Which columns of a table are published.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ColumnChoice {
    /// Only these.
    Include(Vec<String>),
    /// All but these.
    Exclude(Vec<String>),
}

impl ColumnChoice {
    /// Whether a column is published.
    pub fn takes(&self, column: &str) -> bool {
        match self {
            Self::Include(names) => names.iter().any(|name| name == column),
            Self::Exclude(names) => !names.iter().any(|name| name == column),
        }
    }
}

/// The routes of one connector.
#[derive(Clone, Debug, Default)]
pub struct Routes {
    by_table: BTreeMap<String, Route>,
}

impl Routes {
    /// Applies the rules to the tables, or says everything that is wrong.
    pub fn new(connector: &str, events: &Events, tables: &[Table]) -> Result<Self, Vec<Error>> {
        let mut faults = Vec::new();
        let mut routes = Self::default();
        for table in tables {
            let name = &table.schema.table;
            let rule = events.tables.get(name).cloned().unwrap_or_default();
            faults.extend(column_faults(&table.schema, &rule));
            match route(connector, events, &rule, table) {
                Ok(route) => drop(routes.by_table.insert(name.clone(), route)),
                Err(error) => faults.push(error),
            }
        }
        faults.extend(unknown_tables(events, &routes));
        faults.extend(collisions(routes.by_table.values()));
        if faults.is_empty() { Ok(routes) } else { Err(faults) }
    }

    /// The route of a table.
    pub fn get(&self, table: &str) -> Option<&Route> {
        self.by_table.get(table)
    }

    /// All routes, by table name.
    pub fn iter(&self) -> impl Iterator<Item = &Route> {
        self.by_table.values()
    }
}

fn route(connector: &str, events: &Events, rule: &TableRule, found: &Table) -> Result<Route, Error> {
    let table = found.schema.table.as_str();
    let (schema, bare) = table.split_once('.').unwrap_or(("", table));
    let entity = rule.entity.as_deref().unwrap_or(bare);
    let template = rule.topic.as_ref().unwrap_or(&events.topic);
    let parts = [
        ("connector", Some(connector)),
        ("entity", Some(entity)),
        ("schema", Some(schema)),
        ("table", Some(bare)),
        ("version", events.version.as_deref()),
    ];
    let topic = expand(template, &parts).map_err(|error| error.at("table", table))?;
    if let Some(fault) = topic::name_fault(&topic) {
        return Err(Error::new(&codes::BAD_TOPIC_NAME, fault)
            .at("table", table)
            .at("option", format!("connectors.{connector}.events.tables"))
            .hint(format!("Name the entity: add `{table}: {{ entity: ... }}` to `events.tables`.")));
    }
    let columns = match (&rule.include, &rule.exclude) {
        (Some(names), _) => Some(ColumnChoice::Include(names.clone())),
        (None, Some(names)) => Some(ColumnChoice::Exclude(names.clone())),
        (None, None) => None,
    };
    Ok(Route {
        table: table.to_owned(),
        entity: entity.to_owned(),
        topic,
        columns,
        estimated_rows: found.estimated_rows,
        readable: found.readable,
        schema: Arc::clone(&found.schema),
    })
}

/// Puts the parts into a template. An unknown part, or one without a value, is a fault.
pub fn expand(template: &TopicTemplate, parts: &[(&str, Option<&str>)]) -> Result<String, Error> {
    let known = || parts.iter().map(|(name, _)| format!("{{{name}}}")).collect::<Vec<_>>().join(", ");
    let fault = |what: String, hint: String| {
        Error::new(&codes::BAD_TOPIC_NAME, what).at("template", format!("{:?}", template.0)).hint(hint)
    };
    let mut topic = String::new();
    let mut rest = template.0.as_str();
    while let Some((before, after)) = rest.split_once('{') {
        topic.push_str(before);
        let Some((name, after)) = after.split_once('}') else {
            return Err(fault("a '{' of the topic template is not closed".into(), "Close it with '}'.".into()));
        };
        match parts.iter().find(|(part, _)| *part == name) {
            Some((_, Some(value))) => topic.push_str(value),
            Some((_, None)) => {
                return Err(fault(
                    format!("the topic template uses {{{name}}}, which has no value"),
                    format!("Set `events.{name}`, or take {{{name}}} out of the template."),
                ));
            }
            None => return Err(fault(format!("unknown part {{{name}}}"), format!("Use one of {}.", known()))),
        }
        rest = after;
    }
    topic.push_str(rest);
    Ok(topic)
}

fn column_faults(schema: &Schema, rule: &TableRule) -> Vec<Error> {
    let mut faults = Vec::new();
    let named = [("key", &rule.key), ("include", &rule.include), ("exclude", &rule.exclude)];
    for (option, names) in named {
        for name in names.iter().flat_map(|names| names.iter()).filter(|name| schema.column(name).is_none()) {
            let columns: Vec<&str> = schema.columns.iter().map(|column| column.name.as_str()).collect();
            faults.push(
                Error::new(&codes::RULE_UNKNOWN_COLUMN, format!("there is no column {name:?}"))
                    .at("table", &schema.table)
                    .at("option", format!("events.tables.{:?}.{option}", schema.table))
                    .hint(format!("Use one of the table's columns: {}.", columns.join(", "))),
            );
        }
    }
    let choice = match (&rule.include, &rule.exclude) {
        (Some(names), _) => ColumnChoice::Include(names.clone()),
        (None, Some(names)) => ColumnChoice::Exclude(names.clone()),
        (None, None) => return faults,
    };
    for name in schema.key_names().into_iter().filter(|name| !choice.takes(name)) {
        faults.push(
            Error::new(&codes::KEY_COLUMN_EXCLUDED, format!("the key column {name:?} is not published"))
                .at("table", &schema.table)
                .at("option", format!("events.tables.{:?}", schema.table))
                .hint(format!("Publish {name:?}, or choose another key with `key: [...]`.")),
        );
    }
    faults
}

fn unknown_tables(events: &Events, routes: &Routes) -> Vec<Error> {
    let mut faults = Vec::new();
    for name in events.tables.keys().filter(|name| routes.get(name).is_none()) {
        let closest = routes.by_table.keys().max_by(|a, b| {
            let score = |table: &str| strsim::jaro_winkler(name, table);
            score(a).total_cmp(&score(b))
        });
        let hint = closest.map_or_else(
            || "Add the table to `source.tables`.".to_owned(),
            |table| format!("Did you mean {table:?}? Otherwise add the table to `source.tables` or remove the rule."),
        );
        faults.push(
            Error::new(&codes::RULE_UNKNOWN_TABLE, format!("the rule for {name:?} has no captured table"))
                .at("option", format!("events.tables.{name:?}"))
                .hint(hint),
        );
    }
    faults
}

/// Kafka refuses a topic beside one that differs only in `.` and `_`.
pub fn collision_key(topic: &str) -> String {
    topic.replace('_', ".")
}

fn collisions<'a>(routes: impl Iterator<Item = &'a Route>) -> Vec<Error> {
    let mut first: BTreeMap<String, &Route> = BTreeMap::new();
    let mut faults = Vec::new();
    for route in routes {
        match first.get(&collision_key(&route.topic)) {
            None => drop(first.insert(collision_key(&route.topic), route)),
            Some(other) => faults.push(
                Error::new(&codes::TOPIC_COLLISION, format!("{} and {} map to one topic", other.table, route.table))
                    .at("topic", &route.topic)
                    .hint(format!(
                        "Give one of them another entity, or put {{schema}} into `events.topic`: \"{{connector}}.{{schema}}.{{entity}}\" \
                         ({} is the topic now).",
                        route.topic
                    )),
            ),
        }
    }
    faults
}

#[cfg(test)]
mod tests {
    use headwater_connector::{Column, Type};

    use super::*;

    fn table(name: &str) -> Table {
        let column = |name: &str| Column { name: name.into(), r#type: Type::Int64, source_type: "int8".into(), nullable: false };
        let schema = Schema { table: name.into(), columns: vec![column("id"), column("note")], key: vec![0] };
        Table { schema: Arc::new(schema), estimated_rows: None, readable: true }
    }

    fn faults(events: &str, tables: &[&str]) -> Vec<String> {
        let events: Events = serde_json::from_str(events).unwrap();
        let tables: Vec<Table> = tables.iter().map(|name| table(name)).collect();
        let faults = Routes::new("shop", &events, &tables).err().unwrap_or_default();
        faults.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn the_default_topic_is_connector_and_bare_table_name() {
        let routes = Routes::new("shop", &Events::default(), &[table("public.orders")]).unwrap();
        assert_eq!(routes.get("public.orders").unwrap().topic, "shop.orders");
    }

    #[test]
    fn all_faults_are_reported_at_once() {
        let events = r#"{"tables":{"a.t":{"exclude":["id"],"key":["x"]},"a.nope":{}}}"#;
        let text = faults(events, &["a.t", "b.t", "a.Größe"]).join("\n");
        for code in ["HW1150", "HW1151", "HW1152", "HW1153", "HW1154"] {
            assert!(text.contains(code), "{code} is missing in:\n{text}");
        }
    }

    #[test]
    fn names_that_differ_in_dot_and_underscore_collide() {
        assert!(faults("{}", &["a.x_y", "b.x.y"])[0].contains("HW1150"));
    }

    #[test]
    fn a_template_names_its_unknown_part() {
        assert!(faults(r#"{"topic":"{conector}.{entity}"}"#, &["a.t"])[0].contains("unknown part {conector}"));
        assert!(faults(r#"{"topic":"{entity}.{version}"}"#, &["a.t"])[0].contains("has no value"));
    }
}
