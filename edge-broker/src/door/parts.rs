//! Counts what a request holds while it is read. Two bytes on the wire can claim a message or a header, which takes a hundred
//! in memory: by its bytes alone, a request of 16 MiB could be decoded to a gigabyte.

use crate::limits::REQUEST_PARTS_MAX;

/// Fields of a request that are counted; what is in no list is skipped.
pub(super) type Fields = &'static [(u64, Part)];

/// What stands in a field that is counted.
#[derive(Debug)]
pub(super) enum Part {
    /// Nothing that would be counted.
    Leaf,
    /// Fields of its own.
    Holds(Fields),
}

const ACKNOWLEDGEMENT: Fields = &[(4, Part::Holds(&[(1, Part::Leaf)]))];

/// Of a `PublishRequest`: headers, named sites.
pub(super) const PUBLISH: Fields = &[(3, Part::Leaf), (6, Part::Holds(ACKNOWLEDGEMENT))];

/// Of a `PublishBatch`: messages and their headers, named sites.
pub(super) const PUBLISH_BATCH: Fields = &[(1, Part::Holds(&[(3, Part::Leaf)])), (3, Part::Holds(ACKNOWLEDGEMENT))];

/// Of a `SubscribeRequest`: positions, origins, confirmed ids.
pub(super) const SUBSCRIBE: Fields =
    &[(1, Part::Holds(&[(6, Part::Holds(&[(1, Part::Leaf)])), (8, Part::Leaf)])), (3, Part::Holds(&[(2, Part::Leaf)]))];

/// A request that is not read to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refused {
    /// It holds more than [`REQUEST_PARTS_MAX`] parts.
    TooMany,
    /// It is none: nothing would decode it.
    Malformed,
}

/// What comes next.
#[derive(Debug, Clone, Copy)]
enum Next {
    Key,
    Varint,
    /// The length of this field.
    Length(u64),
}

/// Reads one request, in pieces as they come.
#[derive(Debug)]
pub(super) struct Parts {
    fields: Fields,
    /// What is being read: its fields, and where it ends.
    within: Vec<(Fields, u64)>,
    at: u64,
    /// Before this nothing is looked at.
    skip_to: u64,
    next: Next,
    /// A number that was read in part, and how many of its bits.
    number: u64,
    bits: u32,
    count: usize,
}

impl Parts {
    /// For requests with these fields.
    pub(super) fn new(fields: Fields) -> Self {
        let (next, within) = (Next::Key, Vec::new());
        Self { fields, within, at: 0, skip_to: 0, next, number: 0, bits: 0, count: 0 }
    }

    /// Another request begins.
    pub(super) fn begin(&mut self) {
        *self = Self::new(self.fields);
    }

    /// How many parts the request has, as far as it was read.
    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// Reads on.
    pub(super) fn read(&mut self, mut bytes: &[u8]) -> Result<(), Refused> {
        loop {
            let skipped = usize::try_from(self.skip_to.saturating_sub(self.at)).unwrap_or(usize::MAX).min(bytes.len());
            self.at += skipped as u64;
            bytes = bytes.get(skipped..).unwrap_or_default();
            let Some((byte, rest)) = bytes.split_first() else { return Ok(()) };
            bytes = rest;
            if matches!(self.next, Next::Key) {
                while self.within.last().is_some_and(|(_, end)| self.at >= *end) {
                    self.within.pop();
                }
            }
            self.at += 1;
            if let Some(number) = self.number(*byte)? {
                self.take(number)?;
            }
        }
    }

    /// The number that this byte ends.
    fn number(&mut self, byte: u8) -> Result<Option<u64>, Refused> {
        if self.bits > 63 {
            return Err(Refused::Malformed);
        }
        self.number |= u64::from(byte & 0x7f) << self.bits;
        self.bits += 7;
        if byte & 0x80 != 0 {
            return Ok(None);
        }
        self.bits = 0;
        Ok(Some(std::mem::take(&mut self.number)))
    }

    fn take(&mut self, number: u64) -> Result<(), Refused> {
        let skip = |this: &mut Self, bytes: u64| this.skip_to = this.at.saturating_add(bytes);
        self.next = match self.next {
            Next::Varint => Next::Key,
            Next::Key => match number & 7 {
                0 => Next::Varint,
                1 => {
                    skip(self, 8);
                    Next::Key
                }
                2 => Next::Length(number >> 3),
                5 => {
                    skip(self, 4);
                    Next::Key
                }
                _ => return Err(Refused::Malformed),
            },
            Next::Length(field) => {
                let fields = self.within.last().map_or(self.fields, |(fields, _)| *fields);
                let part = fields.iter().find(|(number, _)| *number == field);
                self.count += usize::from(part.is_some());
                if self.count > REQUEST_PARTS_MAX {
                    return Err(Refused::TooMany);
                }
                match part {
                    Some((_, Part::Holds(fields))) => self.within.push((fields, self.at.saturating_add(number))),
                    _ => skip(self, number),
                }
                Next::Key
            }
        };
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;
    use crate::api::{
        self,
        acknowledgement::Of,
        publish_batch::Content,
        subscribe_request::{Confirm, Kind, Open, Positions, open::From},
    };

    /// However the bytes come, so much is counted.
    fn count(fields: Fields, bytes: &[u8]) -> Result<usize, Refused> {
        let counts = [1, 2, 3, 7, 1 << 20].map(|piece| {
            let mut parts = Parts::new(fields);
            bytes.chunks(piece).try_for_each(|piece| parts.read(piece)).map(|()| parts.count)
        });
        assert!(counts.iter().all(|count| *count == counts[0]), "{counts:?}");
        counts[0]
    }

    fn header() -> api::Header {
        api::Header { name: "n".repeat(200), value: vec![0x0a; 300].into() }
    }

    #[test]
    fn what_is_repeated_is_counted_and_what_is_content_is_not() {
        let sites = api::SiteList { sites: vec!["eu".into(); 5] };
        let acknowledgement = Some(api::Acknowledgement { of: Some(Of::Sites(sites)) });
        // Content that looks like fields.
        let payload = || [0x0a, 0x00].repeat(1000).into();
        let content = Content { headers: vec![header(); 3], payload: payload(), ..Default::default() };
        let batch = api::PublishBatch {
            messages: vec![content.clone(), Content::default(), content],
            acknowledgement: acknowledgement.clone(),
            deadline_ms: u64::MAX,
            ..Default::default()
        };
        assert_eq!(count(PUBLISH_BATCH, &batch.encode_to_vec()), Ok(3 + 6 + 2 + 5));
        let request = api::PublishRequest {
            headers: vec![header(); 4],
            payload: payload(),
            acknowledgement,
            ..Default::default()
        };
        assert_eq!(count(PUBLISH, &request.encode_to_vec()), Ok(4 + 2 + 5));
        let place = Some(api::Place { incarnation: 1, incarnation_random: 2, offset: 3 });
        let position = api::Position { place, ..Default::default() };
        let open = Open {
            from: Some(From::Positions(Positions { positions: vec![position; 6] })),
            origins: vec!["eu".into(); 2],
            ..Default::default()
        };
        let open = api::SubscribeRequest { kind: Some(Kind::Open(open)) };
        assert_eq!(count(SUBSCRIBE, &open.encode_to_vec()), Ok(1 + 1 + 6 + 2));
        let confirm = Confirm { ids: vec![api::MessageId::default(); 9], ..Default::default() };
        let confirm = api::SubscribeRequest { kind: Some(Kind::Confirm(confirm)) };
        assert_eq!(count(SUBSCRIBE, &confirm.encode_to_vec()), Ok(1 + 9));
    }

    #[test]
    fn a_request_of_empty_parts_is_refused_long_before_its_end() {
        let most = [0x0a, 0x00].repeat(REQUEST_PARTS_MAX);
        assert_eq!(count(PUBLISH_BATCH, &most), Ok(REQUEST_PARTS_MAX));
        assert_eq!(count(PUBLISH_BATCH, &[0x0a, 0x00].repeat(REQUEST_PARTS_MAX + 1)), Err(Refused::TooMany));
        assert_eq!(count(PUBLISH, &[0x1a, 0x00].repeat(REQUEST_PARTS_MAX + 1)), Err(Refused::TooMany));
        // Headers of one message, which claims to be longer than what is around it.
        let mut headers = vec![0x0a, 0xff, 0xff, 0xff, 0x7f];
        headers.extend([0x1a, 0x00].repeat(REQUEST_PARTS_MAX));
        assert_eq!(count(PUBLISH_BATCH, &headers), Err(Refused::TooMany));
    }

    #[test]
    fn what_is_no_request_is_refused() {
        assert_eq!(count(PUBLISH, &[0x0b]), Err(Refused::Malformed));
        assert_eq!(count(PUBLISH, &[0xff; 11]), Err(Refused::Malformed));
    }
}
