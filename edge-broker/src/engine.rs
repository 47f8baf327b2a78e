//! What the doors need of the engine, and no more: a seam behind which stands the node, or in tests an engine in memory.

use std::sync::Arc;

use bytes::Bytes;
use seaway_federation_proto::{
    control::Control,
    copies::{Hole, LogInfo},
    ids::{LogName, NodeName, Path, Pattern, Place, Site, Topic},
    replication::{CopyStatus, ExplainedWay, Finding, KnownLink, KnownNode, OnlyThere, Removal, SiteStatus, Want},
    session::NodeKind,
};
use seaway_relay::{
    log::contract::{Line, LogStats, Read, ReadError, Table},
    node::{
        Acknowledgement, Alarm, DiskUsage, HoldBack, LinkStatus, LogEvent, Node, OneWayMessage, PendingRun, Publish,
        PublishError, PublishRun, ReceiptRoom,
        limits::{LimitBook, LimitSettings, Subject},
        queues::QueueView,
        topics::{TopicChange, TopicSettingsView, TrimTo},
    },
};
use tokio::sync::{broadcast, mpsc};

/// Changes of durable state that become durable as one: table, key, and the value (`None` deletes).
pub type StateChanges = Vec<(Table, Bytes, Option<Bytes>)>;

/// The engine under a door. Cloning shares it; each method is the one of [`Node`] with the same name.
pub trait Engine: Clone + Send + Sync + 'static {
    /// The federation's name, this node's name, and its kind.
    fn identity(&self) -> (String, NodeName, NodeKind);
    /// See [`Node::receipt_room`].
    fn receipt_room(
        &self,
        topic: &Topic,
        asked: &Acknowledgement,
        count: usize,
    ) -> impl Future<Output = ReceiptRoom> + Send;
    /// See [`Node::publish_run`].
    fn publish_run(
        &self,
        run: PublishRun,
        room: ReceiptRoom,
    ) -> impl Future<Output = Result<PendingRun, PublishError>> + Send;
    /// See [`Node::record`].
    fn record(&self, path: Path, payload: Bytes) -> impl Future<Output = Result<(), PublishError>> + Send;
    /// See [`Node::publish_one_way`].
    fn publish_one_way(&self, publish: Publish) -> Result<(), PublishError>;
    /// See [`Node::subscribe_one_way`].
    fn subscribe_one_way(&self, pattern: Pattern) -> mpsc::Receiver<OneWayMessage>;
    /// See [`Node::watch`].
    fn watch(&self) -> broadcast::Receiver<LogEvent>;
    /// See [`Node::logs`].
    fn logs(&self) -> Vec<LogName>;
    /// See [`Node::info`].
    fn info(&self, log: &LogName) -> Option<LogInfo>;
    /// See [`Node::read`].
    fn read(
        &self,
        log: &LogName,
        from: Place,
        line: Line,
        bytes_max: usize,
    ) -> impl Future<Output = Result<Read, ReadError>> + Send;
    /// See [`Node::find_time`].
    fn find_time(&self, log: &LogName, time_us: u64) -> impl Future<Output = Result<Option<Place>, ReadError>> + Send;
    /// See [`Node::control`].
    fn control(&self, topic: &Topic, origin: &Site) -> Option<Arc<Control>>;
    /// See [`Node::topic_settings`].
    fn topic_settings(&self, topic: &Topic) -> TopicSettingsView;
    /// See [`Node::deletion_confirmed`].
    fn deletion_confirmed(&self, topic: &Topic) -> (Vec<Site>, Vec<Site>);
    /// See [`Node::refused_by`].
    fn refused_by(&self, topic: &Topic) -> Vec<(Site, String)>;
    /// See [`Node::create_topic`].
    fn create_topic(&self, topic: &Topic, change: TopicChange)
    -> impl Future<Output = Result<(), PublishError>> + Send;
    /// See [`Node::set_topic`].
    fn set_topic(&self, topic: &Topic, change: TopicChange) -> impl Future<Output = Result<(), PublishError>> + Send;
    /// See [`Node::delete_topic`].
    fn delete_topic(&self, topic: &Topic) -> impl Future<Output = Result<(), PublishError>> + Send;
    /// See [`Node::trim_log`].
    fn trim_log(&self, log: &LogName, to: TrimTo) -> impl Future<Output = Result<Option<Place>, PublishError>> + Send;
    /// See [`Node::skip_log`].
    fn skip_log(&self, log: &LogName, really: bool) -> Result<Vec<Hole>, PublishError>;
    /// See [`Node::limits`].
    fn limits(&self) -> &Arc<LimitBook>;
    /// See [`Node::set_limit`].
    fn set_limit(
        &self,
        subject: &Subject,
        change: Option<&LimitSettings>,
        file_of_client: &LimitSettings,
    ) -> impl Future<Output = Result<(), PublishError>> + Send;
    /// See [`Node::put_want`].
    fn put_want(&self, want: Want) -> impl Future<Output = Result<(), PublishError>> + Send;
    /// See [`Node::remove_want`].
    fn remove_want(&self, id: &str) -> impl Future<Output = Result<(), PublishError>> + Send;
    /// See [`Node::put_state`].
    fn put_state(&self, changes: StateChanges) -> impl Future<Output = Result<(), PublishError>> + Send;
    /// See [`Node::scan_state`].
    fn scan_state(&self, table: Table, prefix: &[u8]) -> Vec<(Bytes, Bytes)>;
    /// See [`Node::links`].
    fn links(&self) -> Vec<LinkStatus>;
    /// See [`Node::copy_status`].
    fn copy_status(&self, log: &LogName) -> Option<CopyStatus>;
    /// See [`Node::sites`].
    fn sites(&self) -> Vec<SiteStatus>;
    /// See [`Node::find`].
    fn find(
        &self,
        log: &LogName,
        place: Place,
        deadline: std::time::Duration,
    ) -> impl Future<Output = Result<Finding, String>> + Send;
    /// See [`Node::topology`].
    fn topology(&self) -> (Vec<KnownNode>, Vec<KnownLink>);
    /// Whether an operator drained the node, and how many messages wait for other sites.
    fn draining(&self) -> (bool, u64);
    /// See [`Node::explain_way`].
    fn explain_way(&self, from: &Site, to: &Site) -> Result<ExplainedWay, String>;
    /// See [`Node::hold_back`].
    fn hold_back(&self) -> Arc<HoldBack>;
    /// See [`Node::removals`].
    fn removals(&self) -> Vec<Removal>;
    /// See [`Node::only_there`].
    fn only_there(&self, site: &Site) -> Vec<OnlyThere>;
    /// See [`Node::remove_site`].
    fn remove_site(&self, site: &Site) -> impl Future<Output = Result<(), PublishError>> + Send;
    /// See [`Node::alarms`].
    fn alarms(&self) -> Vec<Alarm>;
    /// See [`Node::counters`].
    fn counters(&self) -> Vec<(&'static str, String, u64)>;
    /// See [`Node::queues`].
    fn queues(&self) -> Vec<QueueView>;
    /// See [`Node::disk_usage`].
    fn disk_usage(&self) -> DiskUsage;
    /// See [`Node::log_stats`].
    fn log_stats(&self) -> LogStats;
    /// See [`Node::readiness`].
    fn readiness(&self) -> Result<(), String>;
    /// See [`Node::stop_waiting`].
    fn stop_waiting(&self);
}

impl Engine for Node {
    fn identity(&self) -> (String, NodeName, NodeKind) {
        let config = self.config();
        (config.federation.clone(), config.name.clone(), config.kind)
    }
    async fn receipt_room(&self, topic: &Topic, asked: &Acknowledgement, count: usize) -> ReceiptRoom {
        Node::receipt_room(self, topic, asked, count).await
    }
    async fn publish_run(&self, run: PublishRun, room: ReceiptRoom) -> Result<PendingRun, PublishError> {
        Node::publish_run(self, run, room).await
    }
    async fn record(&self, path: Path, payload: Bytes) -> Result<(), PublishError> {
        Node::record(self, path, payload).await
    }
    fn publish_one_way(&self, publish: Publish) -> Result<(), PublishError> {
        Node::publish_one_way(self, publish)
    }
    fn subscribe_one_way(&self, pattern: Pattern) -> mpsc::Receiver<OneWayMessage> {
        Node::subscribe_one_way(self, pattern)
    }
    fn watch(&self) -> broadcast::Receiver<LogEvent> {
        Node::watch(self)
    }
    fn logs(&self) -> Vec<LogName> {
        Node::logs(self)
    }
    fn info(&self, log: &LogName) -> Option<LogInfo> {
        Node::info(self, log)
    }
    async fn read(&self, log: &LogName, from: Place, line: Line, bytes_max: usize) -> Result<Read, ReadError> {
        Node::read(self, log, from, line, bytes_max).await
    }
    async fn find_time(&self, log: &LogName, time_us: u64) -> Result<Option<Place>, ReadError> {
        Node::find_time(self, log, time_us).await
    }
    fn control(&self, topic: &Topic, origin: &Site) -> Option<Arc<Control>> {
        Node::control(self, topic, origin)
    }
    fn topic_settings(&self, topic: &Topic) -> TopicSettingsView {
        Node::topic_settings(self, topic)
    }
    fn deletion_confirmed(&self, topic: &Topic) -> (Vec<Site>, Vec<Site>) {
        Node::deletion_confirmed(self, topic)
    }
    fn refused_by(&self, topic: &Topic) -> Vec<(Site, String)> {
        Node::refused_by(self, topic)
    }
    async fn create_topic(&self, topic: &Topic, change: TopicChange) -> Result<(), PublishError> {
        Node::create_topic(self, topic, change).await
    }
    async fn set_topic(&self, topic: &Topic, change: TopicChange) -> Result<(), PublishError> {
        Node::set_topic(self, topic, change).await
    }
    async fn delete_topic(&self, topic: &Topic) -> Result<(), PublishError> {
        Node::delete_topic(self, topic).await
    }
    fn skip_log(&self, log: &LogName, really: bool) -> Result<Vec<Hole>, PublishError> {
        Node::skip_log(self, log, really)
    }
    async fn trim_log(&self, log: &LogName, to: TrimTo) -> Result<Option<Place>, PublishError> {
        Node::trim_log(self, log, to).await
    }
    fn limits(&self) -> &Arc<LimitBook> {
        Node::limits(self)
    }
    async fn set_limit(
        &self,
        subject: &Subject,
        change: Option<&LimitSettings>,
        file_of_client: &LimitSettings,
    ) -> Result<(), PublishError> {
        Node::set_limit(self, subject, change, file_of_client).await
    }
    async fn put_want(&self, want: Want) -> Result<(), PublishError> {
        Node::put_want(self, want).await
    }
    async fn remove_want(&self, id: &str) -> Result<(), PublishError> {
        Node::remove_want(self, id).await
    }
    async fn put_state(&self, changes: StateChanges) -> Result<(), PublishError> {
        Node::put_state(self, changes).await
    }
    fn scan_state(&self, table: Table, prefix: &[u8]) -> Vec<(Bytes, Bytes)> {
        Node::scan_state(self, table, prefix)
    }
    fn links(&self) -> Vec<LinkStatus> {
        Node::links(self)
    }
    fn copy_status(&self, log: &LogName) -> Option<CopyStatus> {
        Node::copy_status(self, log)
    }
    fn sites(&self) -> Vec<SiteStatus> {
        Node::sites(self)
    }
    async fn find(&self, log: &LogName, place: Place, deadline: std::time::Duration) -> Result<Finding, String> {
        Node::find(self, log, place, deadline).await
    }
    fn topology(&self) -> (Vec<KnownNode>, Vec<KnownLink>) {
        Node::topology(self)
    }
    fn draining(&self) -> (bool, u64) {
        (self.is_drained(), self.receipts_waiting())
    }
    fn explain_way(&self, from: &Site, to: &Site) -> Result<ExplainedWay, String> {
        Node::explain_way(self, from, to)
    }
    fn hold_back(&self) -> Arc<HoldBack> {
        Node::hold_back(self)
    }
    fn removals(&self) -> Vec<Removal> {
        Node::removals(self)
    }
    fn only_there(&self, site: &Site) -> Vec<OnlyThere> {
        Node::only_there(self, site)
    }
    async fn remove_site(&self, site: &Site) -> Result<(), PublishError> {
        Node::remove_site(self, site).await
    }
    fn alarms(&self) -> Vec<Alarm> {
        Node::alarms(self)
    }
    fn counters(&self) -> Vec<(&'static str, String, u64)> {
        Node::counters(self)
    }
    fn queues(&self) -> Vec<QueueView> {
        Node::queues(self)
    }
    fn disk_usage(&self) -> DiskUsage {
        Node::disk_usage(self)
    }
    fn log_stats(&self) -> LogStats {
        Node::log_stats(self)
    }
    fn readiness(&self) -> Result<(), String> {
        Node::readiness(self)
    }
    fn stop_waiting(&self) {
        Node::stop_waiting(self);
    }
}
