//! Lists in pages, so that no reply outgrows what a client reads.

use prost::Message;

/// Encoded bytes of a page: it ends before the item that would pass them, and only an item alone may be larger. Far below the
/// 4 MiB of one message that clients of gRPC take unless told otherwise.
const PAGE_BYTES: usize = 1024 * 1024;
/// What an item takes beside its own bytes, at most: the field's number and its length.
const FIELD_BYTES: usize = 11;
/// Entries of what an item lists: one with more is given as several.
const ENTRIES_MAX: usize = 1024;

/// What follows `token` (nothing: all from the first), at most `size` items (0: as many as fit), and the token for the rest, empty
/// at the end. `items` come in the order of their keys, which never change.
pub(crate) fn page<T: Message>(items: impl Iterator<Item = (String, T)>, token: &str, size: u32) -> (Vec<T>, String) {
    let most = if size == 0 { usize::MAX } else { usize::try_from(size).unwrap_or(usize::MAX) };
    let (mut page, mut bytes, mut last) = (Vec::new(), 0_usize, String::new());
    for (key, item) in items.filter(|(key, _)| token.is_empty() || key.as_str() > token) {
        let more = item.encoded_len().saturating_add(FIELD_BYTES);
        if page.len() >= most || (!page.is_empty() && bytes.saturating_add(more) > PAGE_BYTES) {
            return (page, last);
        }
        bytes = bytes.saturating_add(more);
        page.push(item);
        last = key;
    }
    (page, String::new())
}

/// An item named `name` as one or more, each with its key and some of the entries that it lists.
pub(crate) fn split<T, L>(name: &str, entries: Vec<L>, item: impl Fn(Vec<L>) -> T) -> Vec<(String, T)> {
    let mut entries = entries.into_iter();
    let mut parts = Vec::new();
    loop {
        let some: Vec<L> = entries.by_ref().take(ENTRIES_MAX).collect();
        if some.is_empty() && !parts.is_empty() {
            return parts;
        }
        // No name holds a control character.
        parts.push((format!("{name}\u{1}{:08}", parts.len()), item(some)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{Alarm, Group, GroupPosition, ListGroupsReply};

    fn alarms(count: usize, bytes: usize) -> impl Iterator<Item = (String, Alarm)> {
        let alarm = move |n: usize| Alarm { name: n.to_string(), text: "x".repeat(bytes), ..Alarm::default() };
        (0..count).map(move |n| (format!("{n:08}"), alarm(n)))
    }

    #[test]
    fn pages_give_everything_once_and_none_is_too_large() {
        let cases = [
            (0, 1, 0, 1),
            (10, 1, 3, 4),
            (10, 1, 10, 1),
            (30, 600_000, 0, 30),
            (30, 2 << 20, 0, 30),
            (100_000, 50, 0, 5),
        ];
        for (count, bytes, size, pages_min) in cases {
            let (mut seen, mut token, mut pages) = (Vec::new(), String::new(), 0);
            loop {
                let (page, next) = page(alarms(count, bytes), &token, size);
                let reply = crate::api::StatusReply { alarms: page.clone(), ..Default::default() };
                assert!(reply.encoded_len() <= PAGE_BYTES || page.len() == 1, "{} bytes", reply.encoded_len());
                seen.extend(page.into_iter().map(|alarm| alarm.name.parse::<usize>().unwrap()));
                pages += 1;
                if next.is_empty() {
                    break;
                }
                token = next;
            }
            assert_eq!(seen, (0..count).collect::<Vec<_>>());
            assert!(pages >= pages_min, "{pages} pages of {count} items of {bytes} bytes");
        }
    }

    #[test]
    fn what_lists_much_is_split_and_fits_what_any_client_reads() {
        let position = crate::api::Position { topic: "t".repeat(255), origin: "o".repeat(63), ..Default::default() };
        let positions = vec![GroupPosition { position: Some(position), ..Default::default() }; 65_536];
        let group = |positions| Group { name: "workers".into(), positions, ..Default::default() };
        let (mut seen, mut token) = (0, String::new());
        loop {
            let (groups, next) = page(split("workers", positions.clone(), group).into_iter(), &token, 0);
            seen += groups.iter().map(|group| group.positions.len()).sum::<usize>();
            let reply = ListGroupsReply { groups, next_page_token: next.clone() };
            assert!(reply.encoded_len() < 4 << 20, "{} bytes", reply.encoded_len());
            if next.is_empty() {
                break;
            }
            token = next;
        }
        assert_eq!(seen, positions.len());
        assert_eq!(split("empty", Vec::new(), group).len(), 1, "an item that lists nothing is one all the same");
    }
}
