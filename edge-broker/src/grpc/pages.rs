//! Lists in pages, so that no reply outgrows what a client reads.

use prost::Message;

/// Encoded bytes of a page, about: it ends with the item that passes them. Far below the 4 MiB of one message that clients of gRPC
/// take unless told otherwise.
const PAGE_BYTES: usize = 1024 * 1024;

/// What follows `token` (nothing: all from the first), at most `size` items (0: as many as fit), and the token for the rest, empty
/// at the end. `items` come in the order of their keys, which never change.
pub(crate) fn page<T: Message>(items: impl Iterator<Item = (String, T)>, token: &str, size: u32) -> (Vec<T>, String) {
    let most = if size == 0 { usize::MAX } else { usize::try_from(size).unwrap_or(usize::MAX) };
    let (mut page, mut bytes, mut last) = (Vec::new(), 0_usize, String::new());
    for (key, item) in items.filter(|(key, _)| token.is_empty() || key.as_str() > token) {
        if page.len() >= most || bytes >= PAGE_BYTES {
            return (page, last);
        }
        bytes = bytes.saturating_add(item.encoded_len());
        page.push(item);
        last = key;
    }
    (page, String::new())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::Alarm;

    fn alarms(count: usize, bytes: usize) -> impl Iterator<Item = (String, Alarm)> {
        let alarm = move |n: usize| Alarm { name: n.to_string(), text: "x".repeat(bytes), ..Alarm::default() };
        (0..count).map(move |n| (format!("{n:08}"), alarm(n)))
    }

    #[test]
    fn pages_give_everything_once_and_none_is_too_large() {
        for (count, bytes, size, pages_min) in [(0, 1, 0, 1), (10, 1, 3, 4), (10, 1, 10, 1), (100, 1 << 20, 0, 20)] {
            let (mut seen, mut token, mut pages) = (Vec::new(), String::new(), 0);
            loop {
                let (page, next) = page(alarms(count, bytes), &token, size);
                assert!(page.iter().map(Message::encoded_len).sum::<usize>() <= PAGE_BYTES + bytes + 64);
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
}
