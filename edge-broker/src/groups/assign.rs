//! Which member serves which log: each log one member, evenly, moving as few as possible. Pure.

use std::collections::{BTreeMap, BTreeSet};

use seaway_federation_proto::ids::LogName;

/// Names a member within its group.
pub(crate) type MemberId = u64;

/// Spreads `logs` over `members`: what is assigned to one of them stays unless another has two fewer.
pub(super) fn spread(
    logs: impl Iterator<Item = (LogName, Option<MemberId>)>,
    members: &BTreeSet<MemberId>,
) -> BTreeMap<LogName, MemberId> {
    let mut of_member: BTreeMap<MemberId, Vec<LogName>> = members.iter().map(|m| (*m, Vec::new())).collect();
    let mut free = Vec::new();
    for (log, assigned) in logs {
        match assigned.and_then(|member| of_member.get_mut(&member)) {
            Some(own) => own.push(log),
            None => free.push(log),
        }
    }
    for log in free {
        if let Some(own) = of_member.values_mut().min_by_key(|own| own.len()) {
            own.push(log);
        }
    }
    loop {
        let least = of_member.iter().min_by_key(|(_, own)| own.len()).map(|(m, own)| (*m, own.len()));
        let most = of_member.iter().max_by_key(|(_, own)| own.len()).map(|(m, own)| (*m, own.len()));
        let (Some((least, few)), Some((most, many))) = (least, most) else { break };
        if many.saturating_sub(few) < 2 {
            break;
        }
        let Some(log) = of_member.get_mut(&most).and_then(Vec::pop) else { break };
        of_member.entry(least).or_default().push(log);
    }
    of_member.into_iter().flat_map(|(member, own)| own.into_iter().map(move |log| (log, member))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grpc::convert::log_of;

    #[test]
    fn logs_are_spread_evenly_and_move_little() {
        let logs: Vec<_> = (1..=7).map(|queue| log_of("t", "east", queue).unwrap()).collect();
        let first = spread(logs.iter().map(|l| (l.clone(), None)), &[1, 2].into());
        let second = spread(first.iter().map(|(l, m)| (l.clone(), Some(*m))), &[1, 2, 3].into());
        let count = |map: &BTreeMap<LogName, MemberId>, m| map.values().filter(|v| **v == m).count();
        assert_eq!([count(&first, 1), count(&first, 2)].iter().sum::<usize>(), 7);
        assert!([1, 2, 3].iter().all(|m| (2..=3).contains(&count(&second, *m))));
        assert_eq!(logs.iter().filter(|l| first[*l] != second[*l]).count(), 2, "only what the third gets moves");
        let third = spread(second.iter().map(|(l, m)| (l.clone(), Some(*m))), &[3].into());
        assert_eq!(count(&third, 3), 7);
        assert!(spread(third.into_iter().map(|(l, m)| (l, Some(m))), &BTreeSet::new()).is_empty());
    }
}
