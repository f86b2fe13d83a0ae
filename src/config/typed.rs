//! Tree to option structs, with the place of whatever does not fit.

use std::fmt;

use serde::{
    de::{
        self, DeserializeOwned, DeserializeSeed, EnumAccess, IntoDeserializer, MapAccess, SeqAccess, VariantAccess, Visitor,
        value::StrDeserializer,
    },
    forward_to_deserialize_any,
};

use super::tree::{Entry, Node, Place, Tree, join};

/// What does not fit, and where.
#[derive(Debug)]
pub struct Misfit {
    /// What is wrong.
    pub what: String,
    /// Where, relative to the node that was read.
    pub path: String,
    /// Where, in the files.
    pub place: Option<Place>,
}

impl Misfit {
    /// The innermost node sets the place; every level on the way out adds its part of the path.
    fn within(mut self, part: &str, place: &Place) -> Self {
        self.place.get_or_insert_with(|| place.clone());
        self.path = match self.path.as_str() {
            "" => part.to_owned(),
            inner if inner.starts_with('[') => format!("{part}{inner}"),
            inner => join(part, inner),
        };
        self
    }
}

impl fmt::Display for Misfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

impl std::error::Error for Misfit {}

impl de::Error for Misfit {
    fn custom<T: fmt::Display>(what: T) -> Self {
        Self { what: what.to_string(), path: String::new(), place: None }
    }
}

/// Reads a struct from a map; `skip` are keys that belong to somebody else.
pub fn read<T: DeserializeOwned>(node: &Node, skip: &[&str]) -> Result<T, Misfit> {
    let result = match &node.tree {
        Tree::Map(entries) if !skip.is_empty() => {
            let entries = entries.iter().filter(|entry| !skip.contains(&entry.key.as_str()));
            let entries: Vec<Entry> = entries.cloned().collect();
            T::deserialize(&Node { place: node.place.clone(), tree: Tree::Map(entries) })
        }
        _ => T::deserialize(node),
    };
    result.map_err(|mut misfit| {
        misfit.place.get_or_insert_with(|| node.place.clone());
        misfit
    })
}

impl<'de> de::Deserializer<'de> for &'de Node {
    type Error = Misfit;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Misfit> {
        match &self.tree {
            Tree::Null => visitor.visit_unit(),
            Tree::Bool(value) => visitor.visit_bool(*value),
            Tree::Number(number) => {
                if let Some(value) = number.as_u64() {
                    visitor.visit_u64(value)
                } else if let Some(value) = number.as_i64() {
                    visitor.visit_i64(value)
                } else {
                    visitor.visit_f64(number.as_f64().unwrap_or_default())
                }
            }
            Tree::Text(text) => visitor.visit_str(text),
            Tree::List(items) => visitor.visit_seq(Items { items: items.iter().enumerate() }),
            Tree::Map(entries) => visitor.visit_map(Entries { entries: entries.iter(), value: None }),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Misfit> {
        if matches!(self.tree, Tree::Null) { visitor.visit_none() } else { visitor.visit_some(self) }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Misfit> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Misfit> {
        match &self.tree {
            Tree::Text(text) => visitor.visit_enum(text.as_str().into_deserializer()),
            Tree::Map(entries) if entries.len() == 1 => visitor.visit_enum(Variant(&entries[0])),
            _ => Err(de::Error::custom(format_args!("expected one of the choices, found {}", self.describe()))),
        }
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct
        seq tuple tuple_struct map struct identifier ignored_any
    }
}

struct Items<'de> {
    items: std::iter::Enumerate<std::slice::Iter<'de, Node>>,
}

impl<'de> SeqAccess<'de> for Items<'de> {
    type Error = Misfit;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Misfit> {
        let Some((index, item)) = self.items.next() else { return Ok(None) };
        seed.deserialize(item).map(Some).map_err(|misfit| misfit.within(&format!("[{index}]"), &item.place))
    }
}

struct Entries<'de> {
    entries: std::slice::Iter<'de, Entry>,
    value: Option<&'de Entry>,
}

impl<'de> MapAccess<'de> for Entries<'de> {
    type Error = Misfit;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Misfit> {
        let Some(entry) = self.entries.next() else { return Ok(None) };
        self.value = Some(entry);
        let key: StrDeserializer<'_, Misfit> = entry.key.as_str().into_deserializer();
        seed.deserialize(key).map(Some).map_err(|misfit| misfit.within(&entry.key, &entry.place))
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Misfit> {
        let Some(entry) = self.value.take() else { return Err(de::Error::custom("a value without a key")) };
        seed.deserialize(&entry.value).map_err(|misfit| misfit.within(&entry.key, &entry.value.place))
    }
}

/// An enum written as a map with one key.
struct Variant<'de>(&'de Entry);

impl<'de> EnumAccess<'de> for Variant<'de> {
    type Error = Misfit;
    type Variant = &'de Node;

    fn variant_seed<V: DeserializeSeed<'de>>(self, seed: V) -> Result<(V::Value, &'de Node), Misfit> {
        let key: StrDeserializer<'_, Misfit> = self.0.key.as_str().into_deserializer();
        Ok((seed.deserialize(key)?, &self.0.value))
    }
}

impl<'de> VariantAccess<'de> for &'de Node {
    type Error = Misfit;

    fn unit_variant(self) -> Result<(), Misfit> {
        serde::Deserialize::deserialize(self)
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value, Misfit> {
        seed.deserialize(self)
    }

    fn tuple_variant<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value, Misfit> {
        de::Deserializer::deserialize_any(self, visitor)
    }

    fn struct_variant<V: Visitor<'de>>(self, _: &'static [&'static str], visitor: V) -> Result<V::Value, Misfit> {
        de::Deserializer::deserialize_any(self, visitor)
    }
}
