//! The configuration: a TOML file, over it `SEAWAY_SECTION__KEY` from the environment, over that flags.
//!
//! [`Loaded::load`] reads and merges them into [`settings::Settings`]; [`resolve`] turns those into what the node and
//! the door take. A mistake names the file and line (or the variable, or the flag), the key, what was found and what is
//! expected, and for a misspelt key the nearest known one. Relative paths in the file count from the file's directory.

pub mod hold_back;
pub mod limits;
pub mod resolve;
pub mod settings;
pub mod source;
mod space;
pub mod values;

use std::path::Path;

use figment::{Figment, error::Kind, providers::Serialized};

use settings::Settings;
use source::{Overrides, SourceFile};

/// A mistake in the configuration: one sentence.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(String);

impl ConfigError {
    pub(crate) fn new(text: String) -> Self {
        Self(text)
    }
}

/// Settings with the knowledge of where each came from.
#[derive(Debug)]
pub struct Loaded {
    /// The merged settings.
    pub settings: Settings,
    file: SourceFile,
    env: Overrides,
    flags: Overrides,
}

impl Loaded {
    /// Reads `file`, the variables in `env` that count, and `--set` flags.
    pub fn load(
        file: &Path,
        env: impl IntoIterator<Item = (String, String)>,
        flags: &[String],
    ) -> Result<Self, ConfigError> {
        Self::merge(SourceFile::read(file)?, Overrides::from_env(env), Overrides::from_flags(flags)?)
    }

    /// Merges what was read.
    pub fn merge(file: SourceFile, env: Overrides, flags: Overrides) -> Result<Self, ConfigError> {
        let figment = Figment::new()
            .merge(Serialized::defaults(file.values()))
            .merge(Serialized::defaults(env.values()))
            .merge(Serialized::defaults(flags.values()));
        // A misspelt section first: what it was to hold would only be said to be missing.
        if let Err(error) = figment.extract::<settings::Sections>() {
            return Err(explain(&error, &file, &env, &flags));
        }
        match figment.extract::<Settings>() {
            Ok(settings) => Ok(Self { settings, file, env, flags }),
            Err(error) => Err(explain(&error, &file, &env, &flags)),
        }
    }

    /// Other settings, of the same file.
    pub(crate) fn with(self, settings: Settings) -> Self {
        Self { settings, ..self }
    }

    /// A mistake about a key's value that only shows in the whole: `text` follows the key.
    pub fn mistake(&self, key: &[&str], text: &str) -> ConfigError {
        let key: Vec<String> = key.iter().map(ToString::to_string).collect();
        let place = place(&key, &self.file, &self.env, &self.flags);
        ConfigError::new(format!("{place}: {} {text}", shown(&key)))
    }

    /// The configuration file's path.
    pub fn path(&self) -> &Path {
        &self.file.path
    }
}

/// Who set a key: the last of flags, environment and file that did; else the file with the nearest line.
fn place(key: &[String], file: &SourceFile, env: &Overrides, flags: &Overrides) -> String {
    if let Some(origin) = flags.origin(key).or_else(|| env.origin(key)) {
        return origin.to_string();
    }
    let below = || flags.origin_below(key).or_else(|| env.origin_below(key));
    if let Some(origin) = (!key.is_empty() && !file.has(key)).then(below).flatten() {
        return origin.to_string();
    }
    match file.line(key) {
        Some(line) => format!("{}:{line}", file.path.display()),
        None => file.path.display().to_string(),
    }
}

/// A key for people: `link.peer[2].cost` (numbered from 1).
fn shown(key: &[String]) -> String {
    let mut text = String::new();
    for part in key {
        match part.parse::<usize>() {
            Ok(index) => text.push_str(&format!("[{}]", index + 1)),
            Err(_) if text.is_empty() => text.push_str(part),
            Err(_) => text.push_str(&format!(".{part}")),
        }
    }
    text
}

fn explain(error: &figment::Error, file: &SourceFile, env: &Overrides, flags: &Overrides) -> ConfigError {
    let path = &error.path;
    let at = |key: &[String]| place(key, file, env, flags);
    let text = match &error.kind {
        Kind::UnknownField(name, known) => {
            let mut key = path.clone();
            if key.last() != Some(name) {
                key.push(name.clone());
            }
            let parent = key.split_last().map(|(_, parent)| parent).unwrap_or_default();
            let hint = match nearest(name, known) {
                Some(near) => format!("did you mean {near:?}?"),
                None => format!("known here are {}", known.join(", ")),
            };
            let within = if parent.is_empty() { String::new() } else { format!(" in [{}]", shown(parent)) };
            let what = if parent.is_empty() { "section" } else { "key" };
            format!("{}: unknown {what} {name:?}{within}; {hint}", at(&key))
        }
        Kind::UnknownVariant(found, known) => {
            let choices: Vec<String> = known.iter().map(|k| format!("{k:?}")).collect();
            format!("{}: {} is {found:?}, but one of {} is expected", at(path), shown(path), choices.join(", "))
        }
        Kind::MissingField(name) => {
            let within = if path.is_empty() { "the file".to_string() } else { format!("[{}]", shown(path)) };
            let is_section = path.is_empty();
            let what = if is_section { format!("section [{name}]") } else { format!("key {name:?}") };
            format!("{}: {what} is missing in {within}; add it", at(path))
        }
        Kind::InvalidType(found, expected) | Kind::InvalidValue(found, expected) => {
            let expected = match expected.as_str() {
                "u32" => "a whole number of at most 4294967295",
                "u16" | "u64" => "a whole number",
                "a boolean" | "bool" => "true or false",
                "a sequence" => "a list",
                "path string" | "a string" => "text in quotes",
                other => other,
            };
            format!("{}: {} is {}, but {expected} is expected", at(path), shown(path), actual(found))
        }
        other => format!("{}: {}: {other}", at(path), shown(path)),
    };
    ConfigError::new(text)
}

fn actual(found: &figment::error::Actual) -> String {
    use figment::error::Actual;
    match found {
        Actual::Str(text) => format!("{text:?}"),
        Actual::Bool(yes) => yes.to_string(),
        Actual::Unsigned(number) => number.to_string(),
        Actual::Signed(number) => number.to_string(),
        Actual::Float(number) => number.to_string(),
        Actual::Map => "a section".into(),
        Actual::Seq => "a list".into(),
        Actual::Other(text) => text.clone(),
        other => other.to_string(),
    }
}

/// The known key that the found one was probably meant to be.
fn nearest<'a>(found: &str, known: &[&'a str]) -> Option<&'a str> {
    let found = found.to_ascii_lowercase().replace('-', "_");
    known
        .iter()
        .map(|name| (strsim::damerau_levenshtein(&found, name), *name))
        .filter(|(distance, name)| *distance <= 2 || (*distance < name.len() / 2))
        .min()
        .map(|(_, name)| name)
}

#[cfg(test)]
mod deployed_tests;
#[cfg(test)]
mod tests;
