//! Where a value came from: the file with its lines, the environment, or the command line.
//!
//! The three become one figment, later ones over earlier ones; this module keeps enough to say, for any key, which of
//! them set it and where.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use figment::value::{Dict, Tag, Value};
use toml_edit::{Document, Item, TableLike};

use super::ConfigError;

/// Largest configuration file, bytes.
pub const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// The parsed file, kept for its lines.
#[derive(Debug)]
pub struct SourceFile {
    /// Its path as given.
    pub path: PathBuf,
    document: Document<String>,
}

impl SourceFile {
    /// Reads and parses a file.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let failed =
            |what: String| ConfigError::new(format!("cannot read the configuration {}: {what}", path.display()));
        let size = std::fs::metadata(path).map_err(|e| failed(e.to_string()))?.len();
        if size > FILE_BYTES_MAX {
            return Err(failed(format!("it has {size} bytes, and at most {FILE_BYTES_MAX} are read")));
        }
        let text = std::fs::read_to_string(path).map_err(|e| failed(e.to_string()))?;
        Self::parse(path, text)
    }

    /// Parses a text that stands for a file of this name.
    pub fn parse(path: &Path, text: String) -> Result<Self, ConfigError> {
        match Document::parse(text.clone()) {
            Ok(document) => Ok(Self { path: path.to_path_buf(), document }),
            Err(e) => {
                let line = e.span().map_or(1, |span| line_of(&text, span.start));
                let what = e.message().replace('\n', ", ");
                Err(ConfigError::new(format!("{}:{line}: this is not TOML: {what}", path.display())))
            }
        }
    }

    /// The line, from 1, of a key, or of the last part of its way that is in the file.
    pub fn line(&self, key: &[String]) -> Option<usize> {
        let text = self.document.raw();
        let mut span = None;
        let mut at = At::Item(self.document.as_item());
        for part in key {
            let Some((next, found)) = at.step(part) else { break };
            span = found.or(span);
            at = next;
        }
        span.map(|span| line_of(text, span.start))
    }

    /// Whether the file sets this key.
    pub fn has(&self, key: &[String]) -> bool {
        let mut at = At::Item(self.document.as_item());
        key.iter().all(|part| match at.step(part) {
            Some((next, _)) => {
                at = next;
                true
            }
            None => false,
        })
    }

    /// The file's values.
    pub fn values(&self) -> Dict {
        table_values(self.document.as_table())
    }
}

fn line_of(text: &str, byte: usize) -> usize {
    1 + text.bytes().take(byte).filter(|b| *b == b'\n').count()
}

/// Where a walk through the document stands.
#[derive(Clone, Copy)]
enum At<'a> {
    Item(&'a Item),
    Table(&'a toml_edit::Table),
    Value(&'a toml_edit::Value),
}

type Found<'a> = (At<'a>, Option<std::ops::Range<usize>>);

impl<'a> At<'a> {
    fn step(self, part: &str) -> Option<Found<'a>> {
        match self {
            At::Item(Item::ArrayOfTables(tables)) => {
                let table = tables.get(part.parse().ok()?)?;
                Some((At::Table(table), table.span()))
            }
            At::Item(Item::Value(value)) | At::Value(value) => match value {
                toml_edit::Value::Array(array) => {
                    let value = array.get(part.parse().ok()?)?;
                    Some((At::Value(value), value.span()))
                }
                toml_edit::Value::InlineTable(table) => in_table(table, part),
                _ => None,
            },
            At::Item(Item::Table(table)) => in_table(table, part),
            At::Table(table) => in_table(table, part),
            At::Item(Item::None) => None,
        }
    }
}

fn in_table<'a>(table: &'a dyn TableLike, part: &str) -> Option<Found<'a>> {
    let (key, item) = table.get_key_value(part)?;
    Some((At::Item(item), key.span().or_else(|| item.span())))
}

fn table_values(table: &dyn TableLike) -> Dict {
    table.iter().filter_map(|(key, item)| Some((key.to_string(), item_value(item)?))).collect()
}

fn item_value(item: &Item) -> Option<Value> {
    match item {
        Item::None => None,
        Item::Value(value) => Some(plain_value(value)),
        Item::Table(table) => Some(Value::from(table_values(table))),
        Item::ArrayOfTables(tables) => {
            Some(Value::Array(Tag::Default, tables.iter().map(|t| Value::from(table_values(t))).collect()))
        }
    }
}

fn plain_value(value: &toml_edit::Value) -> Value {
    match value {
        toml_edit::Value::String(text) => Value::from(text.value().clone()),
        toml_edit::Value::Integer(number) => Value::from(*number.value()),
        toml_edit::Value::Float(number) => Value::from(*number.value()),
        toml_edit::Value::Boolean(yes) => Value::from(*yes.value()),
        toml_edit::Value::Datetime(time) => Value::from(time.value().to_string()),
        toml_edit::Value::Array(array) => Value::Array(Tag::Default, array.iter().map(plain_value).collect()),
        toml_edit::Value::InlineTable(table) => Value::from(table_values(table)),
    }
}

/// Single keys set from outside the file: the environment, or `--set`.
#[derive(Debug, Default)]
pub struct Overrides {
    /// For each key, what it was called there and its value.
    pub entries: BTreeMap<Vec<String>, (String, String)>,
}

impl Overrides {
    /// The variables that count: `SEAWAY_SECTION__KEY`, with a double underscore between the levels.
    pub fn from_env(vars: impl IntoIterator<Item = (String, String)>) -> Self {
        let entries = vars.into_iter().filter_map(|(name, value)| {
            let rest = name.strip_prefix("SEAWAY_")?;
            rest.contains("__").then(|| {
                let key = rest.split("__").map(str::to_ascii_lowercase).collect();
                (key, (format!("environment variable {name}"), value))
            })
        });
        Self { entries: entries.collect() }
    }

    /// `--set SECTION.KEY=VALUE`.
    pub fn from_flags(flags: &[String]) -> Result<Self, ConfigError> {
        let mut entries = BTreeMap::new();
        for flag in flags {
            let (key, value) = flag.split_once('=').filter(|(key, _)| key.contains('.')).ok_or_else(|| {
                ConfigError::new(format!("--set {flag:?} is not understood; write --set SECTION.KEY=VALUE"))
            })?;
            let parts = key.split('.').map(str::to_string).collect();
            entries.insert(parts, (format!("--set {key}"), value.to_string()));
        }
        Ok(Self { entries })
    }

    /// What set this key, or the part of its way that was set as a whole.
    pub fn origin(&self, key: &[String]) -> Option<&str> {
        self.entries.iter().find(|(set, _)| key.starts_with(set)).map(|(_, (name, _))| name.as_str())
    }

    /// What set a key below this one.
    pub fn origin_below(&self, key: &[String]) -> Option<&str> {
        self.entries.iter().find(|(set, _)| set.starts_with(key)).map(|(_, (name, _))| name.as_str())
    }

    /// The values, nested.
    pub fn values(&self) -> Dict {
        let mut dict = Dict::new();
        for (key, (_, text)) in &self.entries {
            // The parser takes an escape apart by characters and cuts by bytes: with others than ASCII before it, it panics (figment 0.10.19).
            let plain = text.contains('\\') && !text.is_ascii();
            let Ok(value) = if plain { Ok(Value::from(text.clone())) } else { text.parse::<Value>() };
            insert(&mut dict, key, value);
        }
        dict
    }
}

fn insert(dict: &mut Dict, key: &[String], value: Value) {
    match key {
        [] => {}
        [last] => {
            dict.insert(last.clone(), value);
        }
        [first, rest @ ..] => {
            let below = dict.entry(first.clone()).or_insert_with(|| Value::from(Dict::new()));
            if let Value::Dict(_, inner) = below {
                insert(inner, rest, value);
            }
        }
    }
}
