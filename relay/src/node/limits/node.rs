//! The node's part: limits become durable, and fit what is set of topics.

use seaway_federation_proto::{
    ids::Topic,
    limits::{MESSAGE_BYTES_CEILING, MESSAGE_BYTES_DEFAULT},
};

use super::{LimitSettings, Subject};
use crate::node::{PublishError, inner::NodeInner, topics::Overrides};

impl NodeInner {
    /// See [`crate::node::Node::set_limit`].
    pub(in crate::node) async fn set_limit(
        &self,
        subject: &Subject,
        change: Option<&LimitSettings>,
        file_of_client: &LimitSettings,
    ) -> Result<(), PublishError> {
        let _one_at_a_time = self.changing_topics.lock().await;
        let largest = self.largest_through(subject);
        let planned = self.limits.plan(subject, change, file_of_client, largest);
        let (settings, entry) = planned.map_err(PublishError::Invalid)?;
        self.store(vec![entry]).await?;
        self.limits.apply(subject, settings);
        Ok(())
    }

    /// The largest message that may come where a limit holds, bytes.
    fn largest_through(&self, subject: &Subject) -> u64 {
        let bytes = match subject {
            Subject::Topic(pattern) => match pattern.as_str().parse::<Topic>() {
                Ok(topic) => self.topic_config(&topic).message_bytes_max,
                // Of a topic that allows larger ones, the burst is one of those.
                Err(_) => MESSAGE_BYTES_DEFAULT,
            },
            Subject::Client(_) => 1,
            Subject::Link(..) => MESSAGE_BYTES_CEILING,
        };
        u64::try_from(bytes).unwrap_or(u64::MAX)
    }

    /// Whether a topic's largest message still passes the burst that is set for it.
    pub(in crate::node) fn check_burst(&self, topic: &Topic, set: &Overrides) -> Result<(), PublishError> {
        let Some(burst) = self.limits.topic_burst(topic) else { return Ok(()) };
        let largest = set.message_bytes_max.unwrap_or(0);
        if u64::try_from(largest).unwrap_or(u64::MAX) <= burst.get() {
            return Ok(());
        }
        Err(PublishError::Invalid(format!(
            "message-size-max would be {largest} bytes, more than the burst of the limit of topic {topic} ({burst} bytes), which could never \
             let one pass; raise that first with `seaway limit set topic {topic} --bytes-burst {largest}`"
        )))
    }
}
