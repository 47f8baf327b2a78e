//! Access tokens: those of the token file, and those created on the node, which keeps only their hashes.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use bytes::Bytes;
use prost::Message as _;
use seaway_federation_proto::ids::Pattern;
use seaway_relay::log::contract::Table;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::{
    door::{DoorError, Rights},
    engine::Engine,
    grpc::errors,
    limits::TOKENS_MAX,
};

/// In front of created tokens, so that they are recognised in logs and by secret scanners.
const TOKEN_PREFIX: &str = "swt_";
/// Shortest token that a token file may hold, bytes.
const TOKEN_BYTES_MIN: usize = 16;
/// Longest name of a token, bytes.
const NAME_BYTES_MAX: usize = 128;

type Hash = [u8; 32];

/// A token as it is known here: never the token itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Token {
    /// Its name.
    pub(crate) name: String,
    /// What it allows.
    pub(crate) rights: Rights,
    /// When it ends, microseconds since 1970; 0: never.
    pub(crate) expires_us: u64,
    /// `file` or `node`.
    pub(crate) from: &'static str,
    hash: Hash,
    /// Cancelled when it is revoked or changed: what it opened ends.
    pub(crate) revoked: Revoked,
}

/// Cancelled when a token no longer counts. Does not enter comparisons.
#[derive(Debug, Clone, Default)]
pub(crate) struct Revoked(pub(crate) CancellationToken);

impl PartialEq for Revoked {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Revoked {}

/// The tokens that are known.
#[derive(Debug)]
pub(crate) struct Tokens<E> {
    engine: E,
    /// By hash, so that looking one up takes no time that depends on the secret's bytes.
    by_hash: parking_lot::RwLock<BTreeMap<Hash, Arc<Token>>>,
    /// Held while tokens are created or revoked.
    changing: tokio::sync::Mutex<()>,
}

impl<E: Engine> Tokens<E> {
    /// Reads the token file and what the node keeps.
    pub(crate) fn open(engine: E, file: Option<&Path>) -> Result<Self, DoorError> {
        let state = engine.scan_state(Table::Tokens, b"").into_iter();
        let mut tokens =
            state.map(|(key, value)| decode(&key, &value)).collect::<Result<Vec<_>, _>>().map_err(DoorError::State)?;
        if let Some(file) = file {
            let listed = read_file(file)?;
            check_names(file, &listed, &tokens)?;
            tokens.extend(listed);
        }
        let by_hash = tokens.into_iter().map(|t| (t.hash, Arc::new(t))).collect();
        Ok(Self { engine, by_hash: parking_lot::RwLock::new(by_hash), changing: tokio::sync::Mutex::new(()) })
    }

    /// What the token file says now.
    pub(crate) fn read(&self, file: Option<&Path>) -> Result<Vec<Token>, DoorError> {
        let Some(file) = file else { return Ok(Vec::new()) };
        let listed = read_file(file)?;
        check_names(file, &listed, self.by_hash.read().values().map(Arc::as_ref))?;
        Ok(listed)
    }

    /// Lets these stand for the token file from now on.
    pub(crate) fn replace(&self, fresh: Vec<Token>) {
        let mut tokens = self.by_hash.write();
        let mut fresh: BTreeMap<Hash, Token> = fresh.into_iter().map(|t| (t.hash, t)).collect();
        // What is the same stays, and with it what it opened.
        tokens.retain(|hash, token| {
            let stays = token.from != FROM_FILE || fresh.get(hash).is_some_and(|f| *f == **token);
            if stays {
                fresh.remove(hash);
            } else {
                token.revoked.0.cancel();
            }
            stays
        });
        tokens.extend(fresh.into_values().map(|t| (t.hash, Arc::new(t))));
    }

    /// The token that this text is; otherwise one sentence.
    pub(crate) fn find(&self, text: &str) -> Result<Token, &'static str> {
        let hash = hash_of(text);
        let found = self.by_hash.read().get(&hash).cloned();
        let found = found.filter(|t| bool::from(t.hash.ct_eq(&hash)));
        let found = found.ok_or("the token is not known here; check that it is whole and was not revoked")?;
        if found.expires_us != 0 && found.expires_us <= now_us() {
            return Err("the token has expired; ask for a new one");
        }
        Ok(Token::clone(&found))
    }

    /// All tokens, by name.
    pub(crate) fn list(&self) -> Vec<Arc<Token>> {
        let mut tokens: Vec<_> = self.by_hash.read().values().cloned().collect();
        tokens.sort_by(|a, b| (&a.name, a.from).cmp(&(&b.name, b.from)));
        tokens
    }

    /// Creates a token, durable when this returns; the text is known to nobody but the caller.
    pub(crate) async fn create(&self, name: &str, rights: Rights, expires_us: u64) -> Result<String, Status> {
        check_name(name).map_err(errors::invalid)?;
        let _changing = self.changing.lock().await;
        {
            let tokens = self.by_hash.read();
            if tokens.values().any(|t| t.name == name) {
                return Err(errors::invalid(format!(
                    "a token named {name} exists; revoke it first or choose another name"
                )));
            }
            if tokens.len() >= TOKENS_MAX {
                return Err(errors::too_many(format!("there are {TOKENS_MAX} tokens already; revoke some first")));
            }
        }
        let text = fresh_token().map_err(errors::unavailable)?;
        let revoked = Revoked::default();
        let token = Token { name: name.into(), rights, expires_us, from: FROM_NODE, hash: hash_of(&text), revoked };
        let change = (Table::Tokens, Bytes::copy_from_slice(name.as_bytes()), Some(encode(&token)));
        self.engine.put_state(vec![change]).await.map_err(|error| errors::engine_status(&error))?;
        self.by_hash.write().insert(token.hash, Arc::new(token));
        Ok(text)
    }

    /// Revokes a token that was created on this node, durable when this returns.
    pub(crate) async fn revoke(&self, name: &str) -> Result<(), Status> {
        let _changing = self.changing.lock().await;
        // One that was made here goes before one of the file's that came with the same name meanwhile.
        let named =
            self.by_hash.read().values().filter(|t| t.name == name).max_by_key(|t| t.from == FROM_NODE).cloned();
        let found = named.ok_or_else(|| errors::not_found(format!("there is no token named {name}")))?;
        if found.from == FROM_FILE {
            let text =
                format!("token {name} comes from the token file; take it out there, and run `seaway config reload`");
            return Err(errors::invalid(text));
        }
        let change = (Table::Tokens, Bytes::copy_from_slice(name.as_bytes()), None);
        self.engine.put_state(vec![change]).await.map_err(|error| errors::engine_status(&error))?;
        self.by_hash.write().remove(&found.hash);
        found.revoked.0.cancel();
        Ok(())
    }
}

const FROM_FILE: &str = "file";
const FROM_NODE: &str = "node";

fn hash_of(text: &str) -> Hash {
    Sha256::digest(text.as_bytes()).into()
}

pub(super) fn now_us() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

fn fresh_token() -> Result<String, String> {
    let mut secret = [0_u8; 32];
    getrandom::fill(&mut secret).map_err(|error| format!("the system gives no random numbers: {error}"))?;
    Ok(format!("{TOKEN_PREFIX}{}", URL_SAFE_NO_PAD.encode(secret)))
}

/// Whether a token may be named so.
pub(crate) fn check_name(name: &str) -> Result<(), String> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"._-@".contains(&b);
    if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.bytes().all(allowed) {
        return Err(format!(
            "the token's name must be 1 to {NAME_BYTES_MAX} of letters, digits, '.', '_', '-' and '@'"
        ));
    }
    Ok(())
}

/// A created token as it is stored under its name. Field numbers are permanent: they are on disk.
#[derive(Clone, PartialEq, prost::Message)]
struct Record {
    #[prost(bytes = "vec", tag = "1")]
    hash: Vec<u8>,
    #[prost(string, repeated, tag = "2")]
    publish: Vec<String>,
    #[prost(string, repeated, tag = "3")]
    subscribe: Vec<String>,
    #[prost(bool, tag = "4")]
    admin: bool,
    #[prost(uint64, tag = "5")]
    expires_us: u64,
}

fn encode(token: &Token) -> Bytes {
    let texts = |patterns: &[Pattern]| patterns.iter().map(Pattern::to_string).collect();
    let record = Record {
        hash: token.hash.to_vec(),
        publish: texts(&token.rights.publish),
        subscribe: texts(&token.rights.subscribe),
        admin: token.rights.admin,
        expires_us: token.expires_us,
    };
    record.encode_to_vec().into()
}

fn decode(key: &[u8], value: &[u8]) -> Result<Token, String> {
    let name = String::from_utf8_lossy(key).into_owned();
    let fail = |why: String| format!("the stored token {name} cannot be read ({why}); remove it or upgrade this node");
    let record = Record::decode(value).map_err(|error| fail(error.to_string()))?;
    let hash: Hash = record.hash.try_into().map_err(|_| fail("its hash is not of 32 bytes".into()))?;
    let rights = Rights {
        publish: patterns(&record.publish).map_err(&fail)?,
        subscribe: patterns(&record.subscribe).map_err(&fail)?,
        admin: record.admin,
    };
    let revoked = Revoked::default();
    Ok(Token { name: name.clone(), rights, expires_us: record.expires_us, from: FROM_NODE, hash, revoked })
}

/// Parses patterns of rights.
pub(crate) fn patterns(texts: &[String]) -> Result<Vec<Pattern>, String> {
    texts
        .iter()
        .map(|text| text.parse().map_err(|error: seaway_federation_proto::ids::InvalidName| error.to_string()))
        .collect()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    token: Vec<FileToken>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileToken {
    name: String,
    token: Option<String>,
    sha256: Option<String>,
    #[serde(default)]
    publish: Vec<String>,
    #[serde(default)]
    subscribe: Vec<String>,
    #[serde(default)]
    admin: bool,
    expires: Option<String>,
}

/// Whether a token file can be used.
pub(crate) fn check_file(path: &Path) -> Result<(), DoorError> {
    read_file(path).map(drop)
}

/// No token of the file may have the name of one that was made on this node: which of the two is meant could not be said.
fn check_names<'a>(path: &Path, listed: &[Token], known: impl IntoIterator<Item = &'a Token>) -> Result<(), DoorError> {
    let twin = known.into_iter().find(|k| k.from == FROM_NODE && listed.iter().any(|l| l.name == k.name));
    twin.map_or(Ok(()), |twin| {
        Err(DoorError::Tokens(format!(
            "the token file {} names token {:?}, and one of that name was made on this node; name it otherwise, or revoke the \
             node's first",
            path.display(),
            twin.name
        )))
    })
}

/// Where and why a token file is not understood, without a word of the line: it may hold a secret.
fn mistake(text: &str, error: &toml::de::Error) -> String {
    let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
    let line = before.matches('\n').count() + 1;
    // Of a value in the wrong place serde says what it is.
    let why = match error.message().rsplit_once(", expected ") {
        Some((found, expected)) if found.starts_with("invalid ") => format!("expected {expected}"),
        _ => error.message().to_owned(),
    };
    format!("is not as expected in line {line}: {why}")
}

fn read_file(path: &Path) -> Result<Vec<Token>, DoorError> {
    let fail = |why: String| DoorError::Tokens(format!("the token file {} {why}", path.display()));
    let text = std::fs::read_to_string(path).map_err(|error| fail(format!("cannot be read: {error}")))?;
    let file: File = toml::from_str(&text).map_err(|error| fail(mistake(&text, &error)))?;
    let mut tokens: Vec<Token> = Vec::new();
    for entry in file.token {
        let name = entry.name.clone();
        let token = file_token(entry).map_err(|why| fail(format!("has a mistake in token {name:?}: {why}")))?;
        if tokens.iter().any(|t| t.name == token.name || t.hash == token.hash) {
            return Err(fail(format!("names token {name:?}, or holds its text, twice")));
        }
        tokens.push(token);
    }
    Ok(tokens)
}

fn file_token(entry: FileToken) -> Result<Token, String> {
    check_name(&entry.name)?;
    let hash = match (&entry.token, &entry.sha256) {
        (Some(text), None) if text.len() >= TOKEN_BYTES_MIN => hash_of(text),
        (Some(_), None) => return Err(format!("it is shorter than {TOKEN_BYTES_MIN} characters")),
        (None, Some(hex)) => parse_hex(hex).ok_or("sha256 must be 64 hexadecimal digits")?,
        _ => return Err("it needs exactly one of token and sha256".into()),
    };
    let rights =
        Rights { publish: patterns(&entry.publish)?, subscribe: patterns(&entry.subscribe)?, admin: entry.admin };
    let expires_us = entry.expires.as_deref().map(parse_time).transpose()?.unwrap_or(0);
    Ok(Token { name: entry.name, rights, expires_us, from: FROM_FILE, hash, revoked: Revoked::default() })
}

fn parse_time(text: &str) -> Result<u64, String> {
    let parsed = time::OffsetDateTime::parse(text, &time::format_description::well_known::Rfc3339);
    let time = parsed.map_err(|error| format!("expires {text:?} is not a time like 2030-01-31T12:00:00Z: {error}"))?;
    Ok(u64::try_from(time.unix_timestamp_nanos() / 1000).unwrap_or(1))
}

fn parse_hex(text: &str) -> Option<Hash> {
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    let mut hash = Hash::default();
    for (index, byte) in hash.iter_mut().enumerate() {
        let at = index.checked_mul(2)?;
        *byte = u8::from_str_radix(text.get(at..at.checked_add(2)?)?, 16).ok()?;
    }
    Some(hash)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_in_a_token_file_is_told_by_its_line_and_without_the_secret() {
        let file = |line: &str| format!("[[token]]\nname = \"shop\"\n{line}\nadmin = true\n");
        for line in [
            "token = \"secret-secret-secret",
            "token = secret-secret-secret",
            "token = [\"secret-secret-secret\"]",
            "publish = \"secret-secret-secret\"",
            "expires = [\"secret\"]",
            "token = \"secret-secret-secret\" \"twice\"",
        ] {
            let text = file(line);
            let told = mistake(&text, &toml::from_str::<File>(&text).err().unwrap());
            assert!(told.contains("line 3") && !told.contains("secret") && !told.contains('\n'), "{line}: {told}");
        }
    }
}
