//! Where messages come from: arguments, a file, or standard input, cut into lines, taken whole, or read as JSON.
//!
//! A file or standard input is read by a thread of its own, since a terminal or a pipe may keep it waiting; what is
//! read goes on at once, in batches of what one read gave, so a line typed now is published now.

use std::{
    io::Read,
    path::{Path, PathBuf},
};

use bytes::{Bytes, BytesMut};
use seaway_federation_proto::limits::MESSAGE_BYTES_CEILING;
use tokio::sync::mpsc;

use crate::{
    api,
    cli::{
        CliError, Exit,
        args::{Input, PubArgs},
        json::Line,
    },
};

/// Bytes that are asked for in one read.
const READ_BYTES: usize = 256 * 1024;
/// Reads that may wait to be published.
const READS_AHEAD: usize = 4;
/// A JSON line may be longer than its message: base64, escapes, names.
const LINE_BYTES_MAX: usize = 4 * MESSAGE_BYTES_CEILING;

/// One message to publish.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Item {
    /// The path that its object names (JSON only).
    pub(crate) path: Option<String>,
    pub(crate) key: Option<Bytes>,
    pub(crate) headers: Vec<api::Header>,
    pub(crate) payload: Bytes,
}

impl Item {
    pub(crate) fn plain(payload: Bytes) -> Self {
        Self { path: None, key: None, headers: Vec::new(), payload }
    }
}

/// What the reader yields: messages in order, with the bytes of input they took; or why it ended early.
pub(crate) type Batch = Result<(Vec<Item>, u64), CliError>;

/// Opens the input; gives its length in bytes where it is known.
pub(crate) fn open(args: &PubArgs) -> Result<(mpsc::Receiver<Batch>, Option<u64>), CliError> {
    let cut = match (args.input, args.whole) {
        (Some(input), _) => input,
        (None, true) => Input::Whole,
        (None, false) => Input::Lines,
    };
    let (to_publisher, batches) = mpsc::channel(READS_AHEAD);
    if !args.messages.is_empty() {
        let items = args.messages.iter().map(|text| Item::plain(Bytes::from(text.clone().into_bytes()))).collect();
        // The channel is new and has room.
        let _ = to_publisher.try_send(Ok((items, 0)));
        return Ok((batches, None));
    }
    let file = args.file.clone().filter(|file| file != Path::new("-"));
    let (source, length) = source(file.as_ref())?;
    let spawned = std::thread::Builder::new().name("input".into()).spawn(move || read_all(source, cut, &to_publisher));
    spawned.map_err(|e| CliError::failed(format!("cannot start a thread: {e}")))?;
    Ok((batches, length))
}

type Source = Box<dyn Read + Send>;

fn source(file: Option<&PathBuf>) -> Result<(Source, Option<u64>), CliError> {
    let Some(path) = file else { return Ok((Box::new(std::io::stdin()), None)) };
    let failed = |e: std::io::Error| CliError::failed(format!("cannot read {}: {e}", path.display()));
    let file = std::fs::File::open(path).map_err(failed)?;
    let about = file.metadata().map_err(failed)?;
    if about.is_dir() {
        return Err(CliError::usage(format!("{} is a directory; name a file", path.display())));
    }
    Ok((Box::new(file), about.is_file().then_some(about.len())))
}

fn read_all(mut source: Source, cut: Input, to_publisher: &mpsc::Sender<Batch>) {
    let mut cutter = Cutter::new(cut);
    let mut buffer = vec![0; READ_BYTES];
    loop {
        let (batch, last) = match source.read(&mut buffer) {
            Ok(0) => (cutter.finish().map(|items| (items, 0)), true),
            Ok(count) => {
                let read = buffer.get(..count).unwrap_or_default();
                (cutter.take(read).map(|items| (items, count as u64)), false)
            }
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(e) => (Err(CliError::failed(format!("cannot read the input: {e}"))), true),
        };
        let last = last || batch.is_err();
        let worth = !matches!(&batch, Ok((items, 0)) if items.is_empty());
        if (worth && to_publisher.blocking_send(batch).is_err()) || last {
            return;
        }
    }
}

/// Cuts bytes into messages; holds what is not yet a whole one.
struct Cutter {
    cut: Input,
    held: BytesMut,
    lines: u64,
}

impl Cutter {
    fn new(cut: Input) -> Self {
        Self { cut, held: BytesMut::new(), lines: 0 }
    }

    fn take(&mut self, read: &[u8]) -> Result<Vec<Item>, CliError> {
        let searched = self.held.len();
        self.held.extend_from_slice(read);
        let mut items = Vec::new();
        if self.cut != Input::Whole {
            let mut from = searched;
            while let Some(at) = self.held.get(from..).and_then(|rest| rest.iter().position(|b| *b == b'\n')) {
                let mut line = self.held.split_to(from + at + 1);
                line.truncate(from + at);
                from = 0;
                self.check(line.len())?;
                items.extend(self.item(line.freeze())?);
            }
        }
        self.check(self.held.len())?;
        Ok(items)
    }

    /// Refuses what is too long for one message before all of it is read; what it is made of is checked later.
    fn check(&self, bytes: usize) -> Result<(), CliError> {
        let most = if self.cut == Input::Json { LINE_BYTES_MAX } else { MESSAGE_BYTES_CEILING };
        if bytes <= most {
            return Ok(());
        }
        let what = match self.cut {
            Input::Whole => "the input".to_string(),
            Input::Json | Input::Lines => format!("line {}", self.lines + 1),
        };
        Err(CliError::new(
            Exit::Refused,
            format!("{what} has more than {most} bytes, which no topic takes as one message; cut it into smaller ones"),
        ))
    }

    fn finish(&mut self) -> Result<Vec<Item>, CliError> {
        let rest = self.held.split().freeze();
        if rest.is_empty() && self.cut != Input::Whole {
            return Ok(Vec::new());
        }
        Ok(self.item(rest)?.into_iter().collect())
    }

    fn item(&mut self, line: Bytes) -> Result<Option<Item>, CliError> {
        self.lines += 1;
        if self.cut != Input::Json {
            return Ok(Some(Item::plain(line)));
        }
        if line.trim_ascii().is_empty() {
            return Ok(None);
        }
        let wrong = |e: String| CliError::failed(format!("input line {} is not a message as JSON: {e}", self.lines));
        let parsed = Line::parse(&line).map_err(wrong)?;
        let path = parsed.path.clone();
        let (key, headers, payload) = parsed.content().map_err(wrong)?;
        Ok(Some(Item { path, key, headers, payload }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn cut_all(cut: Input, text: &[u8], chunks: &[usize]) -> Result<Vec<Bytes>, CliError> {
        let (mut cutter, mut items, mut rest) = (Cutter::new(cut), Vec::new(), text);
        for size in chunks.iter().cycle().map(|size| size + 1) {
            if rest.is_empty() {
                break;
            }
            let (now, later) = rest.split_at(size.min(rest.len()));
            items.extend(cutter.take(now)?);
            rest = later;
        }
        items.extend(cutter.finish()?);
        Ok(items.into_iter().map(|item| item.payload).collect())
    }

    #[test]
    fn lines_keep_all_but_their_newline() {
        let found = cut_all(Input::Lines, b"a\r\n\nlast", &[2]).unwrap();
        assert_eq!(found, ["a\r", "", "last"]);
        assert_eq!(cut_all(Input::Whole, b"a\nb\n", &[0]).unwrap(), ["a\nb\n"]);
        assert_eq!(cut_all(Input::Whole, b"", &[0]).unwrap(), [""]);
    }

    #[test]
    fn a_line_that_is_no_message_is_named() {
        let error = cut_all(Input::Json, b"{\"payload\":\"x\"}\n\n{\"payload\":5}\n", &[9]).expect_err("a number");
        assert!(error.to_string().contains("input line 3"), "{error}");
    }

    #[test]
    fn what_no_topic_takes_is_refused_whether_its_end_was_read_or_not() {
        let long = vec![b'x'; MESSAGE_BYTES_CEILING + 1];
        for (cut, ends) in [(Input::Whole, ""), (Input::Lines, ""), (Input::Lines, "\n"), (Input::Lines, "\nshort\n")] {
            let text = [&long, ends.as_bytes()].concat();
            let error = cut_all(cut, &text, &[READ_BYTES]).expect_err("too long");
            assert_eq!(error.exit(), Exit::Refused, "{cut:?} {ends:?}: {error}");
        }
        cut_all(Input::Lines, &long[1..], &[READ_BYTES]).unwrap();
    }

    proptest! {
        #[test]
        fn cutting_does_not_depend_on_how_it_was_read(
            text in proptest::collection::vec(prop_oneof![Just(b'\n'), any::<u8>()], 0..200),
            chunks in proptest::collection::vec(0usize..9, 1..5),
        ) {
            let found = cut_all(Input::Lines, &text, &chunks).unwrap();
            let mut expected: Vec<Bytes> = text.split(|b| *b == b'\n').map(Bytes::copy_from_slice).collect();
            if expected.last().is_some_and(Bytes::is_empty) { expected.pop(); }
            prop_assert_eq!(found, expected);
        }
    }
}
