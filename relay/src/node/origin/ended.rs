//! Topics that are over: deleted, and their tombstone's time has passed. And how many topics there may be, deleted ones too.
//!
//! A deleted topic keeps its logs as empty shells, so that a later life goes on above them. After a year, when all registered sites
//! know of the deletion, the logs go; what stays is a row that says where each ended, with its chain value. A later life begins its logs
//! there: no place is ever used twice, also not where a site comes back after years with what was deleted, or where the topic is
//! created anew in the same process.
//!
//! **Bounds**: topics that live or are deleted count together, with all queues that they ever had, since their logs are there. Of those
//! that are over `OVER_TOPICS_MAX` are remembered; past it tombstones stay, and count.

use seaway_federation_proto::{
    control,
    envelope::Chain,
    replication::tombstone_key,
    wire::store::{QueueEnd, TopicDeleted},
};

use super::{
    queue::proven_end,
    settings::{put_row, tombstone},
    *,
};

/// Most topics that are over of which it is remembered where they ended; a row takes some hundred bytes.
const OVER_TOPICS_MAX: usize = 50_000;
/// Most logs of them together.
const OVER_LOGS_MAX: usize = 200_000;

/// Whether a topic is over: for whoever asks it is as if it had never been.
pub(super) fn is_over(row: &TopicSettings) -> bool {
    tombstone(row).is_some_and(|stone| !stone.over.is_empty())
}

/// A log that is gone: where it ended, and its chain value there.
pub(super) struct Ended {
    pub(super) queue: Queue,
    pub(super) at: Place,
    pub(super) chain: Chain,
}

fn ended_of(stored: &QueueEnd) -> Option<Ended> {
    let queue = Queue(u16::try_from(stored.queue).ok()?);
    let chain = Chain(stored.chain.as_ref().try_into().ok()?);
    Some(Ended { queue, at: control::place_of(stored.end?), chain })
}

/// Where the logs of a topic ended that is over.
pub(super) fn all_ended(topic: &Topic, over: &[QueueEnd]) -> Result<Vec<Ended>, Refusal> {
    let ended: Option<Vec<Ended>> = over.iter().map(ended_of).collect();
    ended.ok_or_else(|| {
        let text = format!("where topic {topic} ended before it was deleted cannot be read; use another name for it");
        Refusal::Error(PublishError::Unavailable(text))
    })
}

/// The logs that a topic has or may have, its control queue aside.
fn queues_of(row: &TopicSettings) -> usize {
    let of_change = row.change.iter().flat_map(|change| &change.ends).map(|end| end.queue);
    let of_deletion = row.deleted.iter().flat_map(|deleted| &deleted.ends).map(|end| end.queue);
    let to_come = if tombstone(row).is_some() { 0 } else { row.queues };
    let most = of_change.chain(of_deletion).chain([to_come]).max().unwrap_or(0);
    usize::try_from(most.min(u32::from(limits::QUEUES_MAX))).unwrap_or(usize::MAX)
}

impl Origin {
    /// What is stored of a topic that is not over.
    pub(super) fn stored_row(&self, topic: &Topic) -> Option<TopicSettings> {
        self.stored.lock().get(topic.as_str()).filter(|row| !is_over(row)).cloned()
    }

    /// Whether a topic may have so many queues; `before` is how it is stored.
    pub(super) fn check_bounds(
        &self,
        topic: &Topic,
        before: Option<&TopicSettings>,
        queues: u16,
    ) -> Result<(), Refusal> {
        let before = before.filter(|row| !is_over(row));
        let has = before.map_or(0, queues_of);
        let more = usize::from(queues).saturating_sub(has);
        if before.is_some() && more == 0 {
            return Ok(());
        }
        let (mut topics, mut deleted, mut all) = (0_usize, 0_usize, 0_usize);
        for row in self.stored.lock().values().filter(|row| !is_over(row)) {
            topics = topics.saturating_add(1);
            deleted = deleted.saturating_add(usize::from(tombstone(row).is_some()));
            all = all.saturating_add(queues_of(row));
        }
        let refused = |text: String| Err(Refusal::Error(PublishError::Unavailable(text)));
        let with_deleted = match deleted {
            0 => String::new(),
            _ => {
                format!(", {deleted} deleted topics among them, which count until all know of it and a year has passed")
            }
        };
        if before.is_none() && topics >= TOPICS_MAX {
            return refused(format!(
                "topic {topic} would be one too many: this site has {topics} topics already, the most it may have{with_deleted}; use tags \
                 below a topic"
            ));
        }
        if all.saturating_add(more) > OWN_QUEUES_MAX {
            return refused(format!(
                "this site's topics have {all} queues, and {OWN_QUEUES_MAX} are the most{with_deleted}; give new topics fewer"
            ));
        }
        Ok(())
    }

    /// What the configuration asks of a topic does not fit.
    pub(super) fn report_bounds(&self, topic: &Topic, refused: Refusal) {
        let Refusal::Error(why) = refused else { return };
        let text = format!("topic {topic} keeps its queues, whatever the configuration says: {why}");
        (self.config.report)(Report { name: "too-many-queues", subject: topic.to_string(), text });
    }

    /// Now and then: the logs go of deleted topics whose tombstone is as old as `age_us` and whose final entry every registered site
    /// holds. `confirmed` says whether all those hold a place of a log. Waits on the disk.
    pub fn expire_tombstones(&self, age_us: u64, confirmed: &dyn Fn(&LogName, Place) -> bool) {
        let now_us = self.config.clock.wall_us();
        let old = |row: &TopicSettings| {
            let stone = tombstone(row).filter(|_| !is_over(row))?;
            (stone.time_us.saturating_add(age_us) < now_us).then(|| Some((stone.clone(), stone.entry?)))?
        };
        let rows: Vec<_> =
            self.stored.lock().iter().filter_map(|(name, row)| Some((name.clone(), old(row)?))).collect();
        let over = |row: &TopicSettings| row.deleted.as_ref().map_or(0, |deleted| deleted.over.len());
        let of_over: Vec<usize> = self.stored.lock().values().filter(|row| is_over(row)).map(over).collect();
        let (mut topics, mut logs) = (of_over.len(), of_over.iter().fold(0_usize, |sum, n| sum.saturating_add(*n)));
        for (name, (stone, entry)) in rows {
            let Ok(topic) = name.parse::<Topic>() else { continue };
            let entry = control::place_of(entry);
            let control = LogName { topic: topic.clone(), origin: self.config.site.clone(), queue: Queue::CONTROL };
            if !confirmed(&control, entry) {
                continue;
            }
            let Some(over) = self.ends_of_shells(&topic, &stone, entry) else { continue };
            let more = logs.saturating_add(over.len());
            if topics >= OVER_TOPICS_MAX || more > OVER_LOGS_MAX {
                return;
            }
            (topics, logs) = (topics.saturating_add(1), more);
            self.end_topic(&topic, &stone, over);
        }
    }

    /// Where a deleted topic's logs end; `None` where that cannot be read at present, or is not where it was deleted.
    fn ends_of_shells(&self, topic: &Topic, stone: &TopicDeleted, entry: Place) -> Option<Vec<QueueEnd>> {
        let floors = control::ends_of(&stone.ends).into_iter().map(|(queue, end)| (queue, end.offset));
        let floors = floors.chain([(Queue::CONTROL, entry.offset.saturating_add(1))]);
        let end = |(queue, floor)| {
            let log = LogName { topic: topic.clone(), origin: self.config.site.clone(), queue };
            let info = self.log.info(&log, true)?;
            let (at, chain) = proven_end(&*self.log, &log, &info, info.end).ok()?;
            let (end, chain) = (Some(control::stored_place(at)), Bytes::copy_from_slice(&chain.0));
            (at.offset >= floor).then(|| QueueEnd { queue: u32::from(queue.0), end, chain })
        };
        floors.map(end).collect()
    }

    fn end_topic(&self, topic: &Topic, stone: &TopicDeleted, over: Vec<QueueEnd>) {
        // Nobody may open it meanwhile.
        let _topics = self.topics.write();
        if self.changing.lock().is_open(topic.as_str()) {
            return;
        }
        let mut stored = self.stored.lock();
        let Some(row) = stored.get_mut(topic.as_str()).filter(|row| tombstone(row) == Some(stone)) else { return };
        let logs = over.iter().filter_map(ended_of).map(|ended| LogName {
            topic: topic.clone(),
            origin: self.config.site.clone(),
            queue: ended.queue,
        });
        let drops: Vec<Entry> = logs.map(|log| Entry::Drop { log }).collect();
        let stone = TopicDeleted { over, ..stone.clone() };
        let ended = TopicSettings { deleted: Some(stone.clone()), ..row.clone() };
        let (key, value) = (tombstone_key(&self.config.site, topic), stone.encode_to_vec().into());
        let mut entries = vec![put_row(topic, &ended), Entry::Put { table: Table::Deleted, key, value }];
        entries.extend(drops);
        if self.log.submit(Unit { entries }, Box::new(|_| {})).is_ok() {
            self.control_lines.lock().remove(topic.as_str());
            *row = ended;
        }
    }
}
