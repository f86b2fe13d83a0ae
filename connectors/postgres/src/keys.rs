//! The statements that read a table in the order of its key. Values of a key go back to the server as text, and only the server compares them.
//!
//! The operators are those of the type's own order, by their full names: the session's `search_path` has no schema in which an extension
//! could be, and without its own operators a `citext` would be compared as the text that it is not sorted by.

use headwater_connector::{ChunkRequest, Condition, Cursor, Error, Result, Schema};

use crate::{
    catalog::{Catalog, TableFacts, cell, flag, number},
    codes,
    connection::{ident, literal},
};

/// Rows that are looked at for each row that is wanted, where a condition may leave out most of them.
const LOOKED_AT: usize = 8;

/// A column of a key.
#[derive(Debug)]
struct Part {
    /// Quoted.
    name: String,
    /// The same as its base type.
    compared: String,
    /// Behind a value, so that it is read as the column's type; empty where the server finds it out by itself.
    cast: String,
    operators: Operators,
}

/// `<`, `<=`, `=`, `>=`, `>` of a type, as they are called in a statement.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Operators([String; 5]);

const LESS_EQUAL: usize = 1;
const EQUAL: usize = 2;
const GREATER_EQUAL: usize = 3;
const GREATER: usize = 4;

/// A table, its key, and the row filter of its publication.
#[derive(Debug)]
pub struct Keyed {
    from: String,
    parts: Vec<Part>,
    filter: Option<String>,
}

impl Keyed {
    /// Looks up how the server compares the key. A domain is compared as its base type: a cast to the domain would hold a value that is
    /// there already to constraints that were added later, and bring a collation of its own.
    pub async fn of(catalog: &mut Catalog, facts: &TableFacts, schema: &Schema, filter: Option<String>) -> Result<Self> {
        if schema.key.is_empty() {
            return Err(Error::new(&codes::NO_USABLE_KEY, "a table without a key cannot be read in pieces")
                .at("table", facts.full_name())
                .hint("Add a primary key, or set `key:` for the table."));
        }
        Ok(Self { from: from(facts), parts: Part::all(catalog, facts, &schema.key_names()).await?, filter })
    }

    fn list(&self) -> String {
        self.parts.iter().map(|part| part.name.as_str()).collect::<Vec<_>>().join(", ")
    }

    /// The rows of a request in key order; `until` stands over the request's.
    pub fn select(&self, request: &ChunkRequest, until: Option<&Cursor>, columns: &Schema) -> String {
        let names: Vec<String> = columns.columns.iter().map(|column| ident(&column.name)).collect();
        let mut conditions = self.range(request.after.as_ref(), until.or(request.until.as_ref()));
        conditions.extend(request.keys.as_ref().map(|keys| self.one_of(keys)));
        // A comment at the end of a condition would swallow the bracket.
        conditions.extend(self.filter.iter().chain(&request.filter).map(|filter| format!("({filter}\n)")));
        format!("SELECT {} FROM {}{} ORDER BY {}", names.join(", "), self.from, all_of(&conditions), self.list())
    }

    /// Whether rows of a range may be left out, so that it can take long until enough are found.
    pub fn is_sparse(&self, request: &ChunkRequest) -> bool {
        request.keys.is_none() && (self.filter.is_some() || request.filter.is_some())
    }

    /// The last key that one chunk looks at.
    pub fn horizon(&self, request: &ChunkRequest) -> String {
        let conditions = self.range(request.after.as_ref(), request.until.as_ref());
        let rows = request.max_rows.saturating_mul(LOOKED_AT);
        let list = self.list();
        format!("SELECT {list} FROM {}{} ORDER BY {list} OFFSET {rows} LIMIT 1", self.from, all_of(&conditions))
    }

    /// Keys that cut the table into ranges of like size, from a sample.
    pub fn bounds(&self, percent: f64, parts: usize) -> String {
        let key = self.list();
        format!(
            "SELECT {key} FROM (SELECT {key}, row_number() OVER (ORDER BY {key}) AS hw_at, count(*) OVER () AS hw_all \
             FROM {} TABLESAMPLE SYSTEM ({percent})) s WHERE hw_at % greatest(hw_all / {parts}, 1) = 0 AND hw_at < hw_all \
             ORDER BY {key} LIMIT {}",
            self.from,
            parts - 1
        )
    }

    fn range(&self, after: Option<&Cursor>, until: Option<&Cursor>) -> Vec<String> {
        let after = after.map(|cursor| self.beyond(cursor, GREATER, GREATER_EQUAL, GREATER));
        after.into_iter().chain(until.map(|cursor| self.beyond(cursor, LESS_EQUAL, LESS_EQUAL, LESS_EQUAL - 1))).collect()
    }

    /// One comparison of rows, which the index of the key understands. It has one operator, so columns whose operators are in different
    /// schemas are compared one after the other, the first one twice for the index.
    fn beyond(&self, cursor: &Cursor, whole: usize, bound: usize, strict: usize) -> String {
        let values: Vec<String> = cursor.iter().zip(&self.parts).map(|(text, part)| part.value(text)).collect();
        let Some(first) = self.parts.first() else { return "true".to_owned() };
        if self.parts.iter().all(|part| part.operators == first.operators) {
            let list = self.parts.iter().map(|part| part.compared.as_str()).collect::<Vec<_>>().join(", ");
            return format!("({list}) {} ({})", first.operators.0[whole], values.join(", "));
        }
        let mut all = String::new();
        for (at, (part, value)) in self.parts.iter().zip(&values).enumerate().rev() {
            all = match at + 1 == self.parts.len() {
                true => part.compare(whole, value),
                false => format!("({} OR ({} AND {all}))", part.compare(strict, value), part.compare(EQUAL, value)),
            };
        }
        format!("{} AND {all}", first.compare(bound, &values[0]))
    }

    fn one_of(&self, keys: &[Cursor]) -> String {
        let one = |cursor: &Cursor| -> String {
            let parts = self.parts.iter().zip(cursor).map(|(part, text)| part.compare(EQUAL, &part.value(text)));
            parts.collect::<Vec<_>>().join(" AND ")
        };
        match (self.parts.as_slice(), keys) {
            (_, []) => "false".to_owned(),
            // An array of arrays would be one array.
            ([part], _) if !part.cast.is_empty() && !part.cast.ends_with("[]") => {
                let values: Vec<String> = keys.iter().flatten().map(|text| part.value(text)).collect();
                format!("{} {} ANY (ARRAY[{}])", part.compared, part.operators.0[EQUAL], values.join(", "))
            }
            // Shorter, and the same: what an operator asks for is kept in the checkpoint.
            (parts, _) if parts.iter().all(|part| part.operators.0[EQUAL] == "OPERATOR(pg_catalog.=)") => {
                let of = |cursor: &Cursor| {
                    parts.iter().zip(cursor).map(|(part, text)| part.value(text)).collect::<Vec<_>>().join(", ")
                };
                let list: Vec<String> = keys.iter().map(|cursor| format!("({})", of(cursor))).collect();
                let compared: Vec<&str> = parts.iter().map(|part| part.compared.as_str()).collect();
                format!("({}) IN ({})", compared.join(", "), list.join(", "))
            }
            _ => format!("({})", keys.iter().map(|cursor| format!("({})", one(cursor))).collect::<Vec<_>>().join(" OR ")),
        }
    }
}

impl Part {
    /// These columns of a table.
    async fn all(catalog: &mut Catalog, facts: &TableFacts, names: &[&str]) -> Result<Vec<Self>> {
        let column = |name: &&str| facts.columns.iter().find(|column| column.name == *name).map(|column| column.oid.to_string());
        let oids = names.iter().map(column).collect::<Option<Vec<String>>>().ok_or_else(|| gone(&facts.full_name()))?;
        let rows = catalog
            .query(&format!(
                "WITH RECURSIVE base AS (\
                 SELECT k.place, t.oid, t.typtype, t.typbasetype, false AS domain FROM unnest('{{{}}}'::oid[]) WITH ORDINALITY AS k(oid, place) \
                 JOIN pg_type t ON t.oid = k.oid \
                 UNION ALL SELECT b.place, t.oid, t.typtype, t.typbasetype, true FROM base b \
                 JOIN pg_type t ON b.typtype = 'd' AND t.oid = b.typbasetype) \
                 SELECT b.place, s.amopstrategy, n.nspname, o.oprname, format_type(b.oid, -1), b.domain, b.typtype FROM base b \
                 LEFT JOIN pg_opclass c ON c.opcintype = b.oid AND c.opcdefault \
                 AND c.opcmethod = (SELECT oid FROM pg_am WHERE amname = 'btree') \
                 LEFT JOIN pg_amop s ON s.amopfamily = c.opcfamily AND s.amoplefttype = b.oid AND s.amoprighttype = b.oid \
                 AND s.amoppurpose = 's' LEFT JOIN pg_operator o ON o.oid = s.amopopr \
                 LEFT JOIN pg_namespace n ON n.oid = o.oprnamespace WHERE b.typtype <> 'd' ORDER BY b.place",
                oids.join(",")
            ))
            .await?;
        let mut parts: Vec<Self> = names.iter().map(|name| Self::plain(name)).collect();
        for row in &rows {
            let place: usize = number(row, 0)?;
            if let Some(part) = place.checked_sub(1).and_then(|at| parts.get_mut(at)) {
                part.learn(row);
            }
        }
        Ok(parts)
    }

    /// Most types have their operators in `pg_catalog`, and many share those of another type.
    fn plain(name: &str) -> Self {
        let operators = ["<", "<=", "=", ">=", ">"].map(|name| format!("OPERATOR(pg_catalog.{name})"));
        Self { name: ident(name), compared: ident(name), cast: String::new(), operators: Operators(operators) }
    }

    fn learn(&mut self, row: &[Option<String>]) {
        let strategy = number::<usize>(row, 1).ok().and_then(|strategy| strategy.checked_sub(1));
        if let Some(operator) = strategy.and_then(|at| self.operators.0.get_mut(at)) {
            *operator = format!("OPERATOR({}.{})", ident(cell(row, 2)), cell(row, 3));
        }
        let cast = format!("::{}", cell(row, 4));
        if flag(row, 5) {
            self.compared = format!("{}{cast}", self.name);
        } else if cell(row, 6) == "e" {
            // Without a cast no right is needed to use the schema of the type.
            return;
        }
        self.cast = cast;
    }

    fn value(&self, text: &str) -> String {
        format!("{}{}", literal(text), self.cast)
    }

    fn compare(&self, operator: usize, value: &str) -> String {
        format!("{} {} {value}", self.compared, self.operators.0[operator])
    }
}

/// What an operator asks for, as SQL.
pub async fn condition(catalog: &mut Catalog, schema: &Schema, condition: &Condition<'_>) -> Result<String> {
    let (space, name) = schema.table.split_once('.').unwrap_or(("public", &schema.table));
    let facts = catalog.table_named(space, name).await?.ok_or_else(|| gone(&schema.table))?;
    match condition {
        Condition::From { column, value } => {
            let parts = Part::all(catalog, &facts, &[*column]).await?;
            Ok(parts.iter().map(|part| part.compare(GREATER_EQUAL, &part.value(value))).collect())
        }
        Condition::Keys(keys) => Ok(Keyed::of(catalog, &facts, schema, None).await?.one_of(keys)),
    }
}

fn from(facts: &TableFacts) -> String {
    let only = if facts.partitioned { "" } else { "ONLY " };
    format!("{only}{}.{}", ident(&facts.schema), ident(&facts.name))
}

fn gone(table: &str) -> Error {
    Error::new(&codes::BACKFILL_TABLE, "a table or a column of it is gone")
        .at("table", table)
        .hint("Take it out of `tables`, or create it again and restart the connector.")
}

fn all_of(all: &[String]) -> String {
    if all.is_empty() { String::new() } else { format!(" WHERE {}", all.join(" AND ")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keyed(schemas: &[&str]) -> Keyed {
        let mut parts: Vec<Part> = ["a", "b", "c"].into_iter().take(schemas.len()).map(Part::plain).collect();
        for (part, schema) in parts.iter_mut().zip(schemas) {
            part.cast = "::t".into();
            part.operators = Operators(part.operators.0.clone().map(|name| name.replace("pg_catalog", schema)));
        }
        Keyed { from: "t".into(), parts, filter: None }
    }

    fn cursor(texts: &[&str]) -> Cursor {
        texts.iter().map(|text| (*text).to_owned()).collect()
    }

    #[test]
    fn operators_of_one_schema_compare_whole_rows() {
        let range = keyed(&["p", "p"]).range(Some(&cursor(&["1", "x'y"])), Some(&cursor(&["2", "z"])));
        let wanted = ["(\"a\", \"b\") OPERATOR(p.>) ('1'::t, 'x''y'::t)", "(\"a\", \"b\") OPERATOR(p.<=) ('2'::t, 'z'::t)"];
        assert_eq!(range, wanted);
    }

    #[test]
    fn operators_of_several_schemas_compare_column_by_column() {
        let range = keyed(&["p", "q", "p"]).range(Some(&cursor(&["1", "2", "3"])), Some(&cursor(&["4", "5", "6"])));
        let plain = |text: &str| text.replace("OPERATOR(p.", "").replace("OPERATOR(q.", "").replace(")", "").replace("::t", "");
        assert_eq!(
            plain(&range[0]),
            "\"a\" >= '1' AND (\"a\" > '1' OR (\"a\" = '1' AND (\"b\" > '2' OR (\"b\" = '2' AND \"c\" > '3'"
        );
        assert_eq!(
            plain(&range[1]),
            "\"a\" <= '4' AND (\"a\" < '4' OR (\"a\" = '4' AND (\"b\" < '5' OR (\"b\" = '5' AND \"c\" <= '6'"
        );
    }

    #[test]
    fn no_keys_are_no_rows() {
        assert_eq!(keyed(&["p"]).one_of(&[]), "false");
    }
}
