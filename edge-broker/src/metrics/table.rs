//! Every metric: the one place where it is defined.

/// What a metric's value does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Goes up and down.
    Gauge,
    /// Only grows, from 0 at the start of what it counts.
    Counter,
    /// Counts by size: `_bucket` with the upper bound `le`, `_sum` and `_count`.
    Histogram,
}

impl Kind {
    /// As Prometheus writes it.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Gauge => "gauge",
            Kind::Counter => "counter",
            Kind::Histogram => "histogram",
        }
    }
}

/// A metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Metric {
    /// Its name, with its unit.
    pub name: &'static str,
    /// Its type.
    pub kind: Kind,
    /// Names of its labels, in order.
    pub labels: &'static [&'static str],
    /// What it tells, in a sentence.
    pub help: &'static str,
}

macro_rules! metrics {
    ($($id:ident $kind:ident $name:literal [$($label:literal)*] $help:literal)*) => {
        $(
            #[doc = $help]
            pub const $id: Metric = Metric { name: $name, kind: Kind::$kind, labels: &[$($label),*], help: $help };
        )*
        /// All of them, in the order in which they are shown.
        pub const ALL: &[Metric] = &[$($id),*];
    };
}

metrics! {
    BUILD_INFO Gauge "seaway_build_info" ["version"] "1; the version of the program."
    NODE_INFO Gauge "seaway_node_info" ["federation" "site" "node" "kind"] "1; which node this is."
    START_TIME Gauge "seaway_start_time_seconds" [] "When the process started, in seconds since 1970."
    UPTIME Gauge "seaway_uptime_seconds" [] "For how long the process has run."
    READY Gauge "seaway_ready" [] "1 while the node takes publishes (a relay: carries), else 0; /readyz says why."
    RESIDENT Gauge "seaway_process_resident_memory_bytes" [] "Memory of the process that is in RAM."
    CPU Counter "seaway_process_cpu_seconds_total" [] "CPU time of the process, user and system."
    OPEN_FDS Gauge "seaway_process_open_fds" [] "File descriptors that are open."
    MAX_FDS Gauge "seaway_process_max_fds" [] "File descriptors that may be open."
    THREADS Gauge "seaway_process_threads" [] "Threads of the process."

    PUBLISHED_MESSAGES Counter "seaway_topic_published_messages_total" ["topic"] "Messages of publishers here that got a receipt, and one-way ones that were sent."
    PUBLISHED_BYTES Counter "seaway_topic_published_bytes_total" ["topic"] "Their bytes: payload, key and headers."
    DELIVERED_MESSAGES Counter "seaway_topic_delivered_messages_total" ["topic"] "Messages handed to subscribers here, each subscriber counted."
    DELIVERED_BYTES Counter "seaway_topic_delivered_bytes_total" ["topic"] "Their payloads' bytes."
    TOPIC_DELAYED Counter "seaway_topic_publishes_delayed_total" ["topic"] "Publishes that waited for their topic's rate limit."
    TOPIC_REFUSED Counter "seaway_topic_publishes_refused_total" ["topic"] "Publishes that their topic's rate limit refused."
    STORED_MESSAGES Gauge "seaway_topic_stored_messages" ["topic" "origin"] "Messages retained here; of own logs and of copies."
    STORED_BYTES Gauge "seaway_topic_stored_bytes" ["topic" "origin"] "Bytes of the batches retained here."

    COPY_LIVE Gauge "seaway_copy_live" ["topic" "origin"] "1 where the copy has all that its origin is known to hold, else 0. Own logs, and copies that nobody wants, have no copy metrics. Of copies that are not told apart the worst is shown: the least of this and the next, the greatest lag."
    COPY_LAG_KNOWN Gauge "seaway_copy_lag_known" ["topic" "origin"] "1 where the origin is heard of and has said how far its logs go, else 0; then the lag of the copy is not given."
    COPY_LAG_MESSAGES Gauge "seaway_copy_lag_messages" ["topic" "origin"] "How far the copy is behind its origin, in messages."
    COPY_LAG_BYTES Gauge "seaway_copy_lag_bytes" ["topic" "origin"] "How far the copy is behind its origin, in bytes of batches."
    COPY_LAG_SECONDS Gauge "seaway_copy_lag_seconds" ["topic" "origin"] "How far the copy is behind its origin, by the origin's clock."
    COPY_HOLES Gauge "seaway_copy_holes" ["topic" "origin"] "Stated holes of the copy, of all kinds."
    COPIES Gauge "seaway_copies" ["state"] "Copies by their state, a topic of one origin counted once; state own: this site's own."

    LINK_LIVE Gauge "seaway_link_live" ["peer" "direction"] "1 while probes pass end to end and what is due moves, else 0; link ls says why not."
    LINKS Gauge "seaway_links" ["state"] "Links by their state."
    LINK_RTT Gauge "seaway_link_round_trip_seconds" ["peer" "direction"] "Round-trip time of probes through the whole session, while the link is up."
    LINK_LOSS Gauge "seaway_link_loss_ratio" ["peer" "direction"] "Share of packets sent that were lost, over about ten seconds."
    LINK_RECEIVED Counter "seaway_link_received_bytes_total" ["peer" "direction"] "Bytes received on the present connection."
    LINK_SENT Counter "seaway_link_sent_bytes_total" ["peer" "direction"] "Bytes sent on the present connection."
    LINK_BATCHES_IN Counter "seaway_link_received_batches_total" ["peer" "direction"] "Batches received on the present connection."
    LINK_BATCHES_OUT Counter "seaway_link_sent_batches_total" ["peer" "direction"] "Batches sent on the present connection."
    LINK_CREDIT Gauge "seaway_link_credit_bytes" ["peer" "direction" "lane"] "Bytes that the peer has granted and that are not used, of what is live and of the backlog, while the link is up."
    LINK_RECONNECTS Counter "seaway_link_reconnects_total" ["peer" "direction"] "Times that the link was made anew."
    LINK_SEND_LIMITED Counter "seaway_link_send_limited_total" ["peer" "direction"] "Times that a rate limit held back what is sent, on the present connection."
    LINK_RECEIVE_LIMITED Counter "seaway_link_receive_limited_total" ["peer" "direction"] "Times that a rate limit held back what the peer is let send, on the present connection."
    LINK_ONE_WAY_LIMITED Counter "seaway_link_one_way_limited_total" ["peer" "direction"] "One-way messages dropped above a rate limit, on the present connection."
    LINK_DROPPED Counter "seaway_link_one_way_dropped_total" ["peer" "direction"] "One-way messages dropped for lack of room on the link."

    LOG_GROUPS Counter "seaway_log_groups_total" [] "Group writes of the commit log."
    LOG_SYNCS Counter "seaway_log_syncs_total" [] "fdatasyncs of the commit log."
    LOG_SYNC_SECONDS Histogram "seaway_log_sync_seconds" [] "How long the fdatasyncs of the commit log's group writes took."
    LOG_WRITTEN Counter "seaway_log_written_bytes_total" [] "Bytes written to segment files."
    LOG_MOVED Counter "seaway_log_moved_bytes_total" [] "Bytes of batches that were moved so that old segments could go; part of what was written to segments."
    LOG_INDEX_WRITTEN Counter "seaway_log_index_written_bytes_total" [] "Bytes that the index wrote to its own files, compactions counted."
    LOG_ACCEPTED Counter "seaway_log_accepted_bytes_total" [] "Bytes of batches that the commit log accepted, own ones and those of copies."
    LOG_SEGMENTS Gauge "seaway_log_segments" [] "Segment files."
    LOG_SEGMENT_BYTES Gauge "seaway_log_segment_bytes" [] "Bytes of segment files on disk."
    LOG_LIVE_BYTES Gauge "seaway_log_live_bytes" [] "Bytes of batches that some log still retains."
    LOG_INDEX_BYTES Gauge "seaway_log_index_bytes" [] "Bytes of the index beside the segments, as last measured."
    LOG_POISONED Gauge "seaway_log_poisoned" [] "1 once a write or sync failed and the commit log stopped for good."
    LOG_DAMAGES Gauge "seaway_log_damages" [] "Damaged ranges found on the disk since the start."
    LOG_TORN Gauge "seaway_log_torn_bytes" [] "Bytes that were cut as torn when the log was opened."
    DISK_FREE Gauge "seaway_disk_free_bytes" [] "Free bytes of the commit log's file system, as last measured."
    DISK_KEPT Gauge "seaway_disk_kept_bytes" [] "Bytes of the reserve that are kept in a file for what makes room; 0 while they are in use."
    OWN_FULL Gauge "seaway_disk_own_full" [] "1 while publishes are refused since the share of own logs is used up, else 0."
    COPIES_FULL Gauge "seaway_disk_copies_full" [] "1 while copies take nothing more since their share is used up, else 0."
    DISK_FULL Gauge "seaway_disk_full" [] "1 while publishes are refused for lack of room, else 0."

    QUEUE_BYTES Gauge "seaway_queue_bytes" ["queue"] "What a queue of the node holds; of all links together. `seaway queues` tells them apart, and says what happens at the bound."
    QUEUE_BYTES_MAX Gauge "seaway_queue_max_bytes" ["queue"] "What it may hold."
    QUEUE_ITEMS Gauge "seaway_queue_items" ["queue"] "What a queue that is counted in pieces holds; receipts: messages that wait for other sites."
    QUEUE_ITEMS_MAX Gauge "seaway_queue_max_items" ["queue"] "What it may hold."

    DOOR_CONNECTIONS Gauge "seaway_door_connections" [] "Clients' connections."
    DOOR_SUBSCRIPTIONS Gauge "seaway_door_subscriptions" [] "Open subscriptions."
    DOOR_PUBLISHES Counter "seaway_door_publishes_total" ["result"] "Publishes by their end: receipt or failure."
    DOOR_DELIVERED Counter "seaway_door_delivered_total" [] "Messages handed to subscribers."
    DOOR_REFUSED Counter "seaway_door_refused_total" ["reason"] "What the door refused: not-allowed, connections, rate."
    DOOR_DELAYED Counter "seaway_door_delayed_total" [] "Publishes that waited for their client's rate."

    CLIENT_DELAYED Counter "seaway_client_publishes_delayed_total" ["client"] "Publishes of a client that waited for its rate limit."
    CLIENT_REFUSED Counter "seaway_client_publishes_refused_total" ["client"] "Publishes of a client that its rate limit refused."

    AUDIT_FAILURES Counter "seaway_audit_failures_total" [] "Admin calls whose record could not be stored in _audit; the node's log has them."

    GROUPS_SILENT Gauge "seaway_groups_silent" [] "Durable groups that did not say how they stand within 2 s: of those this page has nothing."
    GROUP_MEMBERS Gauge "seaway_group_members" ["group"] "Members of a durable group."
    GROUP_LAG Gauge "seaway_group_lag_messages" ["group"] "Messages held here that the group has not confirmed."
    GROUP_UNCONFIRMED Gauge "seaway_group_unconfirmed_messages" ["group"] "Messages that are with members and not confirmed yet."

    CERTIFICATE_EXPIRY Gauge "seaway_certificate_expiry_timestamp_seconds" ["role" "holder"] "When a certificate in use ends, in seconds since 1970; of several of one role and holder the first. Roles: link, link-authority, peer, door, door-authority."

    ALARMS Gauge "seaway_alarms" ["alarm"] "Alarms that stand, by name; status says what they mean and what to do."
    EVENTS Counter "seaway_engine_events_total" ["event"] "What the engine counts: messages repeated, refused or dropped, by name."
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_rules() {
        let mut seen = std::collections::BTreeSet::new();
        for metric in ALL {
            assert!(seen.insert(metric.name), "{} twice", metric.name);
            assert!(metric.name.starts_with("seaway_"), "{}", metric.name);
            assert!(metric.name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_'));
            assert_eq!(metric.kind == Kind::Counter, metric.name.ends_with("_total"), "{}", metric.name);
            assert!(metric.help.ends_with('.') && !metric.help.contains(['\n', '\\']), "{}", metric.name);
            for unit in ["milliseconds", "_ms", "_us", "kib", "_mb", "percent"] {
                assert!(!metric.name.contains(unit), "{} is not in base units", metric.name);
            }
        }
    }
}
