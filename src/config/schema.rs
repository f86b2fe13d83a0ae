//! The JSON Schema of a whole main file: what the loader validates against and what editors complete from.

use headwater_connector::ConnectorKind;
use schemars::{SchemaGenerator, generate::SchemaSettings};
use serde_json::{Map, Value as Json, json};

use super::raw;
use crate::log::{embedded, kafka};

/// Options whose value is a path that is relative to the file that says it. Connectors and logs mark theirs with
/// `#[schemars(extend("x-path" = true))]`.
const PATH_MARK: &str = "x-path";

/// The schema of the main file, with the options of all kinds.
pub fn whole(kinds: &[&dyn ConnectorKind]) -> Json {
    let mut definitions = Map::new();
    let mut root = part(root_schema::<raw::Root>(), "", &mut definitions);
    let common = part(root_schema::<raw::Log>(), "", &mut definitions);
    let logs = [
        ("embedded", "The log inside this process.", root_schema::<embedded::Options>()),
        ("kafka", "The log on Apache Kafka.", root_schema::<kafka::Options>()),
    ];
    let logs = logs.map(|(name, summary, options)| {
        let mut variant = part(options, &format!("log_{name}_"), &mut definitions);
        if let (Some(own), Some(common)) = (variant["properties"].as_object_mut(), common["properties"].as_object()) {
            own.extend(common.clone());
        }
        tagged(variant, &[name], summary)
    });
    let sources = kinds.iter().filter_map(|kind| {
        let options: Json = kind.source_options()?.into();
        let variant = part(options, &format!("source_{}_", kind.name()), &mut definitions);
        let names: Vec<&str> = std::iter::once(kind.name()).chain(kind.synonyms().iter().copied()).collect();
        Some(tagged(variant, &names, kind.summary()))
    });
    let sources: Vec<Json> = sources.collect();
    definitions.insert("Source".into(), choice("What is read, and how. `kind` says which options follow.", sources));
    definitions.insert("Log".into(), choice("Where topics live.", logs.to_vec()));
    root["properties"]["log"] = json!({ "$ref": "#/$defs/Log" });
    complete_connector(&mut definitions);
    root["$schema"] = "https://json-schema.org/draft/2020-12/schema".into();
    root["title"] = "headwater".into();
    root["$defs"] = Json::Object(definitions);
    root
}

fn complete_connector(definitions: &mut Map<String, Json>) {
    let Some(properties) = definitions.get_mut("Connector").and_then(|connector| connector["properties"].as_object_mut()) else {
        return;
    };
    let mut all = Map::new();
    all.insert("source".into(), json!({ "$ref": "#/$defs/Source" }));
    // Sinks are part of the language, so that the message about them is better than "unknown option".
    all.insert("sink".into(), json!({ "description": "What is written to. No kinds yet.", "x-later": true }));
    all.append(properties);
    *properties = all;
}

fn root_schema<T: schemars::JsonSchema>() -> Json {
    let settings: SchemaGenerator = SchemaSettings::draft2020_12().into_generator();
    settings.into_root_schema_for::<T>().into()
}

/// Moves the definitions of a schema that stood alone to the common ones, under names of its own.
fn part(mut schema: Json, prefix: &str, definitions: &mut Map<String, Json>) -> Json {
    let own = schema.as_object_mut().and_then(|schema| {
        schema.remove("$schema");
        schema.remove("title");
        schema.remove("$defs")
    });
    rename(&mut schema, prefix);
    if let Some(Json::Object(own)) = own {
        for (name, mut definition) in own {
            rename(&mut definition, prefix);
            definitions.insert(format!("{prefix}{name}"), definition);
        }
    }
    schema
}

fn rename(schema: &mut Json, prefix: &str) {
    match schema {
        Json::Object(map) => {
            for (key, value) in map {
                match value {
                    Json::String(text) if key == "$ref" => *text = text.replace("#/$defs/", &format!("#/$defs/{prefix}")),
                    value => rename(value, prefix),
                }
            }
        }
        Json::Array(items) => items.iter_mut().for_each(|item| rename(item, prefix)),
        _ => {}
    }
}

/// Puts `kind` in front of the options.
fn tagged(mut schema: Json, names: &[&str], summary: &str) -> Json {
    let kind = match names {
        [name] => json!({ "type": "string", "const": name, "description": summary }),
        names => json!({ "type": "string", "enum": names, "description": summary }),
    };
    let mut properties = Map::new();
    properties.insert("kind".into(), kind);
    if let Some(own) = schema["properties"].as_object_mut() {
        properties.append(own);
    }
    let mut required = vec![Json::from("kind")];
    required.extend(schema["required"].as_array().cloned().unwrap_or_default());
    schema["type"] = "object".into();
    schema["properties"] = Json::Object(properties);
    schema["required"] = Json::Array(required);
    schema["additionalProperties"] = false.into();
    schema
}

fn choice(description: &str, variants: Vec<Json>) -> Json {
    json!({ "description": description, "type": "object", "required": ["kind"], "oneOf": variants })
}

/// Whether the value at this schema is a path.
pub fn is_path(schema: &Json) -> bool {
    schema.get(PATH_MARK).is_some()
}

/// Whether the value at this schema is a secret.
pub fn is_secret(schema: &Json) -> bool {
    schema.get("x-secret").is_some()
}

/// Whether a secret may stand here, perhaps as one of several things.
pub fn takes_secret(root: &Json, schema: &Json) -> bool {
    alternatives(root, schema).into_iter().any(is_secret)
}

/// Follows `$ref`. What stands beside a reference (a description, a mark) is not needed by those who ask.
pub fn resolve<'a>(root: &'a Json, mut schema: &'a Json) -> &'a Json {
    // A schema that refers to itself would never end; none of ours is nested that deep.
    for _ in 0..16 {
        if is_path(schema) || is_secret(schema) {
            return schema;
        }
        let target = schema.get("$ref").and_then(Json::as_str).and_then(|target| target.strip_prefix('#'));
        match target.and_then(|pointer| root.pointer(pointer)) {
            Some(next) => schema = next,
            None => return schema,
        }
    }
    schema
}

/// The alternatives of `oneOf` or `anyOf`, if there are any, with nested ones in a row and references followed.
pub fn alternatives<'a>(root: &'a Json, schema: &'a Json) -> Vec<&'a Json> {
    let schema = resolve(root, schema);
    let list = ["oneOf", "anyOf"].iter().find_map(|word| schema.get(*word)).and_then(Json::as_array);
    match list {
        Some(list) if !is_secret(schema) => list.iter().flat_map(|inner| alternatives(root, inner)).collect(),
        _ => vec![schema],
    }
}

/// The words that a schema of fixed texts allows; none for any other schema.
pub fn words<'a>(schemas: &[&'a Json]) -> Option<Vec<&'a str>> {
    let mut words = Vec::new();
    for schema in schemas {
        match (schema.get("const"), schema.get("enum")) {
            (Some(word), _) => words.push(word.as_str()?),
            (None, Some(Json::Array(list))) => {
                for word in list.iter().filter(|word| !word.is_null()) {
                    words.push(word.as_str()?);
                }
            }
            _ => return None,
        }
    }
    (!words.is_empty()).then_some(words)
}

/// The key whose value tells the variants of a tagged union apart.
pub fn tag<'a>(root: &'a Json, variants: &[&'a Json]) -> Option<&'a str> {
    let first = variants.first()?.get("properties")?.as_object()?;
    let fixed = |variant: &'a Json, key: &str| {
        let property = variant.get("properties").and_then(|properties| properties.get(key));
        property.is_some_and(|property| words(&[resolve(root, property)]).is_some())
            && variant["required"].as_array().is_some_and(|required| required.iter().any(|name| name == key))
    };
    first.keys().map(String::as_str).find(|key| variants.iter().all(|variant| fixed(variant, key)))
}

/// The variant that a tag's value chooses.
pub fn variant<'a>(root: &'a Json, variants: &[&'a Json], tag: &str, value: &str) -> Option<&'a Json> {
    let fits = |variant: &&&'a Json| {
        let words = words(&[resolve(root, &variant["properties"][tag])]);
        words.is_some_and(|words| words.contains(&value))
    };
    variants.iter().find(fits).copied()
}

/// Whether JSON of this type (`string`, `object`, …) can satisfy the schema.
pub fn accepts(schema: &Json, kind: &str) -> bool {
    let same = |name: &str| name == kind || (name == "number" && kind == "integer");
    match schema.get("type") {
        Some(Json::String(name)) => same(name),
        Some(Json::Array(names)) => names.iter().filter_map(Json::as_str).any(same),
        _ => match words(&[schema]) {
            Some(_) => kind == "string",
            None => true,
        },
    }
}
