//! The node: commit log, hub, links and the publish path joined into one handle, which doors use.
//!
//! This is what `edge-broker` sees of the engine. Cloning a [`Node`] shares it.
//!
//! - [`origin`]: from an accepted message to its durable place, for this site's own logs;
//! - [`receipts`]: waiting for other sites;
//! - `hold_back`: what is kept beyond retention for sites that have not got it; `sites`: sites that are taken out for ever;
//! - `start`, `inner`: how the parts are joined, and the node's four threads: `seaway-origin` seals batches, `seaway-hub` turns
//!   the replication machine, `seaway-upkeep` looks after the disk, `seaway-retention` trims and reclaims.

mod answers;
pub mod clock;
#[cfg(test)]
mod disk_tests;
mod find;
mod hold_back;
mod inner;
pub mod life;
pub mod limits;
mod one_way;
pub mod origin;
mod publish;
pub mod queues;
pub mod receipts;
mod retention;
mod room;
mod sites;
mod space;
mod start;
mod threads;
pub mod time_guard;
pub mod topics;
mod twins;
mod types;
mod untaken;
mod wants;

use std::sync::Arc;

use bytes::Bytes;
use seaway_federation_proto::{
    copies::LogInfo,
    ids::{LogName, NodeName, Path, Pattern, Place, Site, Topic},
    replication::{CopyStatus, OnlyThere, Removal, Report, SiteStatus, Want},
};
use tokio::sync::{broadcast, mpsc};

use self::{clock::Clock, inner::NodeInner, queues::QueueView};
use crate::{
    log::{
        contract::{CommitLog, Entry, Line, LogStats, Read, ReadError, Table},
        disk::INDEX_MEMORY_BYTES,
    },
    transport::{expiry::CertificateEnd, service::FreshTls},
};

pub use self::{
    hold_back::{Gap, HoldBack, HoldBackConfig, HoldBackRule, SiteHoldBack, TopicHoldBack},
    one_way::{SUBSCRIBER_BYTES_MAX, SUBSCRIBER_MESSAGES_MAX},
    origin::OwnMessage,
    space::{DiskUsage, Forecast, SpaceConfig, TopicUsage},
    types::{
        AUDIT_TOPIC, Acknowledgement, Alarm, AutoCreate, LinkStatus, LinkTls, LogEvent, NodeConfig, OnDeadline,
        OneWayMessage, Outcome, PendingReceipt, PendingRun, Publish, PublishError, PublishRun, Receipt, ReceiptRoom,
        StartError, TopicConfig,
    },
};

/// A running node.
#[derive(Debug, Clone)]
pub struct Node {
    inner: Arc<NodeInner>,
}

impl Node {
    /// Opens the log, starts threads and links.
    ///
    /// # Errors
    /// As [`StartError`] says: one sentence with what to do.
    pub async fn start(config: NodeConfig) -> Result<Node, StartError> {
        let node = Self::open(config).await?;
        node.begin_links();
        Ok(node)
    }

    /// As [`Node::start`], but for the links: their sockets are open, and no peer sees the node before [`Node::begin_links`].
    /// Whatever else may keep the process from coming up is tried in between.
    ///
    /// # Errors
    /// As [`StartError`] says: one sentence with what to do.
    pub async fn open(config: NodeConfig) -> Result<Node, StartError> {
        Ok(Node { inner: NodeInner::open(config).await? })
    }

    /// Lets peers in and dials; a second call does nothing. Must be called within a tokio runtime.
    pub fn begin_links(&self) {
        self.inner.begin_links();
    }

    /// Joins a node over a commit log that is open already: for tests and simulation of what stands above the log.
    ///
    /// # Errors
    /// As [`StartError`] says.
    pub async fn start_on(config: NodeConfig, log: Arc<dyn CommitLog>) -> Result<Node, StartError> {
        let random = start::random_bits()?;
        let guard = Arc::new(time_guard::TimeGuard::new(config.space.clock_step_max));
        let node = Node { inner: NodeInner::start(config, log, random, guard).await? };
        node.begin_links();
        Ok(node)
    }

    /// Its settings.
    pub fn config(&self) -> &NodeConfig {
        &self.inner.config
    }

    /// Where it listens for links; useful where port 0 was asked for.
    pub fn local_address(&self) -> Option<std::net::SocketAddr> {
        self.inner.transport.get()?.local_address()
    }

    /// Accepts a message: waits only for room in the append queue. The order of returns is the order of storage.
    ///
    /// # Errors
    /// As [`PublishError`] says; nothing is stored then. What fails later comes with the receipt.
    pub async fn publish(&self, publish: Publish) -> Result<PendingReceipt, PublishError> {
        self.inner.publish(publish).await
    }

    /// Stores a message of Seaway's own, in a topic that nobody else may publish to; it is durable when this returns. Taken by a drained
    /// node, too.
    ///
    /// # Errors
    /// As [`PublishError`] says.
    pub async fn record(&self, path: Path, payload: Bytes) -> Result<(), PublishError> {
        self.inner.record(path, payload).await
    }

    /// Waits for room for `count` messages of one topic that wait for other sites: a site that is cut off may let it wait long, so
    /// a publisher asks for it before it takes anything that others need too. What cannot be asked of the topic is told by
    /// [`Node::publish_run`].
    pub async fn receipt_room(&self, topic: &Topic, asked: &Acknowledgement, count: usize) -> ReceiptRoom {
        self.inner.receipt_room(topic, asked, count).await
    }

    /// Accepts messages that follow one another: as [`Node::publish`] for each, and at a fraction of its cost. Each message
    /// has its own fate, which the answer tells. Takes of `room` as far as it goes, and waits for more where it does not.
    ///
    /// # Errors
    /// The node takes no messages now; nothing is stored.
    pub async fn publish_run(&self, run: PublishRun, room: ReceiptRoom) -> Result<PendingRun, PublishError> {
        self.inner.publish_run(run, room).await
    }

    /// Hands a message to the network and to local subscribers; nothing is stored.
    ///
    /// # Errors
    /// The message is not allowed, or the node takes none.
    pub fn publish_one_way(&self, publish: Publish) -> Result<(), PublishError> {
        self.inner.publish_one_way(publish)
    }

    /// One-way messages that match, from here and elsewhere; at most [`SUBSCRIBER_BYTES_MAX`] wait, what comes then is dropped
    /// and counted.
    pub fn subscribe_one_way(&self, pattern: Pattern) -> mpsc::Receiver<OneWayMessage> {
        self.inner.one_way.subscribe(pattern)
    }

    /// Told when any log moves, appears or goes.
    pub fn watch(&self) -> broadcast::Receiver<LogEvent> {
        self.inner.events.subscribe()
    }

    /// Logs held here, in order of name.
    pub fn logs(&self) -> Vec<LogName> {
        self.inner.log.logs()
    }

    /// One of them, as durable here.
    pub fn info(&self, log: &LogName) -> Option<LogInfo> {
        self.inner.log.info(log, true)
    }

    /// Reads what is durable here; goes to threads that may wait on the disk when memory does not hold it.
    ///
    /// # Errors
    /// The disk could not be read, or the node is stopping.
    pub async fn read(&self, log: &LogName, from: Place, line: Line, bytes_max: usize) -> Result<Read, ReadError> {
        self.inner.read(log, from, line, bytes_max).await
    }

    /// First batch at or after an origin time.
    ///
    /// # Errors
    /// As [`Node::read`].
    pub async fn find_time(&self, log: &LogName, time_us: u64) -> Result<Option<Place>, ReadError> {
        self.inner.find_time(log, time_us).await
    }

    /// Makes a want, durable when this returns.
    ///
    /// # Errors
    /// The id is not allowed or configured already, there are too many, or the commit log takes nothing.
    pub async fn put_want(&self, want: Want) -> Result<(), PublishError> {
        self.inner.put_want(want).await
    }

    /// Removes one; an unknown one is fine.
    ///
    /// # Errors
    /// The commit log takes nothing.
    pub async fn remove_want(&self, id: &str) -> Result<(), PublishError> {
        self.inner.remove_want(id).await
    }

    /// Stores values in the groups', tokens' … tables as one unit, durable when this returns (`None` deletes).
    ///
    /// # Errors
    /// The commit log takes nothing, or a key or value is too large.
    pub async fn put_state(&self, changes: Vec<(Table, Bytes, Option<Bytes>)>) -> Result<(), PublishError> {
        let entry = |(table, key, value)| match value {
            Some(value) => Entry::Put { table, key, value },
            None => Entry::Delete { table, key },
        };
        self.inner.store(changes.into_iter().map(entry).collect()).await
    }

    /// Reads a table.
    pub fn scan_state(&self, table: Table, prefix: &[u8]) -> Vec<(Bytes, Bytes)> {
        self.inner.log.scan(table, prefix)
    }

    /// Settings that hold for a topic here.
    pub fn topic_config(&self, topic: &Topic) -> TopicConfig {
        self.inner.topic_config(topic)
    }

    /// State of each link.
    pub fn links(&self) -> Vec<LinkStatus> {
        let mut links = self.inner.transport.get().map(|t| t.links()).unwrap_or_default();
        let removed: Vec<_> = self.inner.hub.removals().into_iter().map(|removal| removal.site).collect();
        // Those that a removed site's nodes made are over for ever; one that is dialled is named for as long as the file says so.
        let is_removed = |link: &LinkStatus| link.peer.as_ref().is_some_and(|peer| removed.contains(&peer.site));
        links.retain(|link| link.dials || link.up_since_us.is_some() || !is_removed(link));
        links
    }

    /// Closes the link with a peer and keeps it closed until it is resumed or the process ends; `by` says who wants that.
    ///
    /// # Errors
    /// There is no such link; the sentence names those that there are.
    pub fn pause_link(&self, peer: &NodeName, by: &str) -> Result<(), String> {
        self.inner.links()?.pause(peer, by)
    }

    /// Lets a paused link come up again; whether it was paused here.
    ///
    /// # Errors
    /// There is no such link; the sentence names those that there are.
    pub fn resume_link(&self, peer: &NodeName) -> Result<bool, String> {
        self.inner.links()?.resume(peer)
    }

    /// Takes the node out of use until [`Node::undrain`] or the end of the process: no new publishes are taken, no way leads
    /// through it while another exists, and it says who wants that. Messages that were accepted get their receipts, subscribers and
    /// links stay. Whether it was out of use before.
    pub fn drain(&self, by: &str) -> bool {
        self.inner.set_drained(Some(by))
    }

    /// Takes the node into use again; whether it was out of it.
    pub fn undrain(&self) -> bool {
        self.inner.set_drained(None)
    }

    /// Whether it was drained, and that was not undone.
    pub fn is_drained(&self) -> bool {
        self.inner.is_drained()
    }

    /// Messages that wait for other sites.
    pub fn receipts_waiting(&self) -> u64 {
        self.inner.room.taken()[1].0
    }

    /// When the certificates of its links end: its own, its authorities', those of the peers that are linked.
    pub fn certificates(&self) -> Vec<CertificateEnd> {
        self.inner.transport.get().map(|transport| transport.certificates()).unwrap_or_default()
    }

    /// Raises an alarm: counted, and logged as often as is of use.
    pub fn raise(&self, report: Report) {
        self.inner.hub.report(report, self.inner.clock.wall_us());
    }

    /// Takes the alarm of one subject away: what it says is over.
    pub fn withdraw(&self, name: &'static str, subject: &str) {
        self.inner.hub.clear_one(name, subject);
    }

    /// Retention by pattern of the topic name from now on, of own logs and copies; the first match counts. All else in these settings
    /// stays as it was at the start.
    pub fn set_retention(&self, topics: Vec<(Pattern, TopicConfig)>) {
        self.inner.topics.set_retention(&topics);
    }

    /// The rates that hold here, and what was set of them.
    pub fn limits(&self) -> &Arc<limits::LimitBook> {
        &self.inner.limits
    }

    /// Sets a limit, durably; `None` forgets what commands set of it. `file_of_client`: what the door's configuration says of clients.
    ///
    /// # Errors
    /// It contradicts what holds beside it, or the commit log takes nothing; nothing is changed then.
    pub async fn set_limit(
        &self,
        subject: &limits::Subject,
        change: Option<&limits::LimitSettings>,
        file_of_client: &limits::LimitSettings,
    ) -> Result<(), PublishError> {
        self.inner.set_limit(subject, change, file_of_client).await
    }

    /// The configured wants from now on: those whose ids are new begin, those that are gone end; one that stays does so as it
    /// was.
    pub fn set_wants(&self, wants: Vec<Want>) {
        self.inner.set_wants(wants);
    }

    /// Reads and checks the links' certificates, key and authorities from these files, and changes nothing yet. `None`: the node has
    /// no links.
    ///
    /// # Errors
    /// A file cannot be used.
    pub fn read_tls(&self, files: &LinkTls) -> Result<Option<FreshTls>, StartError> {
        self.inner.transport.get().map(|transport| transport.read_again(files)).transpose()
    }

    /// Uses what was read for every connection from now on; links that stand are not touched.
    pub fn use_tls(&self, fresh: FreshTls) {
        if let Some(transport) = self.inner.transport.get() {
            transport.use_from_now(fresh);
        }
    }

    /// Reads the links' certificates, key and authorities anew; links that stand are not touched.
    ///
    /// # Errors
    /// A file cannot be used; all stays as it was.
    pub fn reload_tls(&self) -> Result<(), StartError> {
        self.inner.transport.get().map_or(Ok(()), |t| t.reload())
    }

    /// State of a log.
    pub fn copy_status(&self, log: &LogName) -> Option<CopyStatus> {
        let status = self.inner.hub.copy_status(self.inner.clock.now(), log)?;
        Some(self.inner.say_without_room(status))
    }

    /// Sites known.
    pub fn sites(&self) -> Vec<SiteStatus> {
        self.inner.hub.sites()
    }

    /// What is kept beyond retention for registered sites, as of the last look (each ten seconds or sooner). Of a relay: nothing.
    pub fn hold_back(&self) -> Arc<HoldBack> {
        self.inner.hold_back.as_ref().map(|keeper| keeper.shown()).unwrap_or_default()
    }

    /// Sites that were removed from the federation, in order of name.
    pub fn removals(&self) -> Vec<Removal> {
        self.inner.hub.removals()
    }

    /// What only this site is known to hold; see [`seaway_federation_proto::replication::Replication::only_there`].
    pub fn only_there(&self, site: &Site) -> Vec<OnlyThere> {
        self.inner.hub.only_there(site)
    }

    /// Removes a site from the federation, for ever; durable here when this returns, and on its way to all nodes.
    ///
    /// # Errors
    /// It is this node's own site, no such site is known, or the commit log takes nothing.
    pub async fn remove_site(&self, site: &Site) -> Result<(), PublishError> {
        self.inner.remove_site(site).await
    }

    /// Alarms since the start.
    pub fn alarms(&self) -> Vec<Alarm> {
        self.inner.hub.alarms()
    }

    /// Counters (name, label, value) that are nobody else's, one-way drops by cause among them.
    pub fn counters(&self) -> Vec<(&'static str, String, u64)> {
        let hub = self.inner.hub.counters().into_iter();
        let one_way = self.inner.one_way.counters().into_iter();
        let links = self.links().into_iter().map(|link| {
            let peer = link.peer.map_or(link.address, |p| p.to_string());
            ("one_way_dropped_link", peer, link.one_way_dropped)
        });
        hub.chain(one_way).map(|(name, value)| (name, String::new(), value)).chain(links).collect()
    }

    /// Every queue and buffer of the node, those of links included.
    pub fn queues(&self) -> Vec<QueueView> {
        let inner = &self.inner;
        let [bytes, receipts] = inner.room.taken();
        let stats = inner.log.stats();
        let (one_way, changes) = (inner.one_way.waiting(), inner.hub.waiting());
        let tail = u64::try_from(inner.config.tail_bytes_max).unwrap_or(u64::MAX);
        let links = inner.transport.get().map(|transport| transport.queues()).unwrap_or_default();
        let rows = [
            QueueView::bytes("publish", bytes.0, bytes.1, "publishes wait for room, until their deadline"),
            QueueView::pieces(
                "receipts",
                receipts.0,
                receipts.1,
                "publishes that ask for other sites wait, until their deadline",
            ),
            QueueView::bytes(
                "append",
                stats.queued_bytes,
                stats.queued_bytes_max,
                "publishes wait, links get no credit",
            ),
            QueueView::bytes("one-way subscribers", one_way.0, one_way.1, "dropped and counted"),
            QueueView::bytes("changes", changes.0, changes.1, "what others say is given back, and said again"),
            QueueView::unseen("tail", tail, "the oldest go; readers behind them use the disk"),
            QueueView::unseen("index", INDEX_MEMORY_BYTES, "blocks are dropped, tables are flushed"),
        ];
        rows.into_iter().chain(links).collect()
    }

    /// Figures of the commit log.
    pub fn log_stats(&self) -> LogStats {
        self.inner.log.stats()
    }

    /// What holds the disk, and how long it lasts. Looks at every log: not for each second.
    pub fn disk_usage(&self) -> DiskUsage {
        self.inner.disk_usage()
    }

    /// Whether publishes are taken (a relay: whether it carries), or why not.
    ///
    /// # Errors
    /// The reason, in a sentence.
    pub fn readiness(&self) -> Result<(), String> {
        self.inner.readiness()
    }

    /// For how long it has been up.
    pub fn uptime(&self) -> std::time::Duration {
        self.inner.clock.now()
    }

    /// Whether the node's threads turn and its storage gets on, see [`life`]; a node that states why it takes nothing is alive.
    ///
    /// # Errors
    /// What is stuck, in a sentence.
    pub fn liveness(&self) -> Result<(), String> {
        self.inner.liveness()
    }

    /// Ends the waits for other sites, now and from now on, with [`PublishError::Stopping`]: the node is about to stop.
    pub fn stop_waiting(&self) {
        self.inner.receipts.stop();
    }

    /// Refuses new publishes, lets those accepted finish, closes links in peace, closes the log. Messages that still wait for
    /// other sites after two seconds are answered with [`PublishError::Stopping`].
    ///
    /// # Errors
    /// The commit log could not be closed in peace, or the node is stopping already.
    pub async fn shutdown(&self) -> Result<(), String> {
        self.inner.shutdown().await
    }
}
