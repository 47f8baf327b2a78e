//! The audit trail: every call that changes a node, with who, what, when and its outcome, in a topic of its own.
//!
//! A record is a message of topic [`TOPIC`], published through the node's own publish path, so it is as durable and as readable as any
//! other: `seaway sub _audit --from earliest`, for callers with the admin right that showed a token or a certificate. Nobody can
//! publish there, and no `#` matches it. Its retention is a quarter of a year and [`RETENTION_BYTES`] a log, unless a `[[topic]]` section with the
//! pattern `_audit` says otherwise. A relay stores no messages: it has the same records in its log alone, under the target `seaway::audit`.
//!
//! What is recorded is decided here and not in each call: all that is not known to be mere looking ([`LOOKING`]), refusals of callers who are
//! known included, so a call that is added is recorded from its first day. What a call is about its request says ([`Told`]), once the
//! caller's rights have been found to suffice. Refusals of one caller are recorded up to a number and then summed up ([`super::refusals`]):
//! who may change nothing here can also not fill the trail until it forgets the rest. A call that was begun is carried out and recorded
//! although its client leaves, within [`ADMIN_CALL_TIME_MAX`]. It waits for its record's durability, but no longer than [`RECORD_WITHIN`]: a log that
//! is slow, or takes nothing, makes no node that cannot be steered. Records that were not stored are counted.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use bytes::Bytes;
use parking_lot::Mutex;
use seaway_federation_proto::{ids::Path, session::NodeKind};
use seaway_relay::node::AUDIT_TOPIC as TOPIC;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use tokio::{sync::Semaphore, task::JoinHandle};
use tonic::{
    Extensions, Status,
    body::Body,
    codegen::{Service, http},
    server::NamedService,
    transport::server::TcpConnectInfo,
};

use super::{
    errors,
    refusals::{Becomes, Refusals, WINDOW},
    shared::{DoorCounters, PERMIT_BYTES, Shared},
    told::Told,
};
use crate::{
    auth::Caller,
    engine::Engine,
    limits::{ADMIN_CALL_TIME_MAX, ADMIN_CALLS_MAX, AUDIT_PENDING_BYTES_MAX},
    steering::levels,
};

/// How long a call waits for its record at most.
pub(crate) const RECORD_WITHIN: Duration = Duration::from_secs(1);
/// Longest detail of a record, bytes.
const DETAIL_BYTES_MAX: usize = 4096;
/// Longest outcome of a record, bytes.
const OUTCOME_BYTES_MAX: usize = 1024;
/// Calls that change nothing.
pub(crate) const LOOKING: [&str; 6] = ["Status", "List", "Get", "Find", "Topology", "ExplainRoute"];
/// All calls of the service; a record's path has no other name in it.
pub(crate) const CALLS: [&str; 28] = [
    "Status",
    "ListLinks",
    "ListTopics",
    "ListGroups",
    "DeleteGroup",
    "ListSites",
    "RemoveSite",
    "CreateToken",
    "ListTokens",
    "RevokeToken",
    "Drain",
    "PauseLink",
    "ResumeLink",
    "ReloadConfig",
    "SetLogLevel",
    "GetLogLevels",
    "Find",
    "Topology",
    "ExplainRoute",
    "CreateTopic",
    "SetTopic",
    "TrimTopic",
    "RemoveTopic",
    "SkipTopic",
    "ListLimits",
    "SetLimit",
    "RemoveLimit",
    "ListQueues",
];
/// In place of a call that there is not.
const UNKNOWN_CALL: &str = "Unknown";
/// In place of calls that are summed up.
const REFUSED_CALLS: &str = "Refused";

/// What the records of one door take.
#[derive(Debug)]
pub(crate) struct Trail {
    refusals: Refusals,
    /// Bytes of records that are being stored, in permits of [`PERMIT_BYTES`].
    pending: Arc<Semaphore>,
    /// Calls that may still be begun.
    calls: Arc<Semaphore>,
}

impl Default for Trail {
    fn default() -> Self {
        let pending = Arc::new(Semaphore::new(AUDIT_PENDING_BYTES_MAX / PERMIT_BYTES));
        Self { refusals: Refusals::default(), pending, calls: Arc::new(Semaphore::new(ADMIN_CALLS_MAX)) }
    }
}

/// What is known of a call.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
enum Known {
    /// Nothing: the caller's rights did not suffice, or the call was none.
    #[default]
    Nothing,
    /// It changes nothing.
    Looks,
    /// What it is about.
    Changes(String),
}

/// What the handler found out about a call.
#[derive(Debug, Clone, Default)]
struct Detail(Arc<Mutex<Known>>);

/// Says what a call is about whose caller may make it.
pub(crate) fn note(extensions: &Extensions, request: &impl Told) {
    if let Some(noted) = extensions.get::<Detail>() {
        *noted.0.lock() = match request.only_looks() {
            true => Known::Looks,
            false => Known::Changes(cut(request.told(), DETAIL_BYTES_MAX)),
        };
    }
}

/// A text up to so many bytes.
fn cut(mut text: String, bytes_max: usize) -> String {
    text.truncate(text.floor_char_boundary(bytes_max));
    text
}

/// Records the calls of the service inside.
#[derive(Debug)]
pub(crate) struct Audited<S, E: Engine> {
    /// The service.
    pub(crate) inner: S,
    /// What the door's services share.
    pub(crate) shared: Arc<Shared<E>>,
}

impl<S: Clone, E: Engine> Clone for Audited<S, E> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone(), shared: self.shared.clone() }
    }
}

impl<S: NamedService, E: Engine> NamedService for Audited<S, E> {
    const NAME: &'static str = S::NAME;
}

type Answer = Pin<Box<dyn Future<Output = Result<http::Response<Body>, Infallible>> + Send>>;

impl<S, E: Engine> Service<http::Request<Body>> for Audited<S, E>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Answer;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: http::Request<Body>) -> Answer {
        let asked = request.uri().path().rsplit('/').next().unwrap_or_default();
        let call = CALLS.into_iter().find(|call| *call == asked).unwrap_or(UNKNOWN_CALL);
        let who = Caller::of(request.extensions()).map(|caller| caller.name.clone()).unwrap_or_default();
        let (own, all) = (self.shared.rates.of(&who, Instant::now()), self.shared.trail.calls.clone());
        let Some(room) = own.admin.clone().try_acquire_owned().ok().zip(all.try_acquire_owned().ok()) else {
            let status = errors::too_many("too many admin calls are being answered; wait until some of them are");
            return Box::pin(async { Ok(status.into_http()) });
        };
        if LOOKING.iter().any(|looking| call.starts_with(looking)) {
            let answer = in_time(self.inner.call(request));
            return Box::pin(async move {
                let _room = room;
                answer.await
            });
        }
        let detail = Detail::default();
        request.extensions_mut().insert(detail.clone());
        let from = remote(request.extensions());
        let (answer, shared) = (in_time(self.inner.call(request)), self.shared.clone());
        // To its end, although the client may leave.
        let whole = tokio::spawn(async move {
            let _room = room;
            let response = answer.await?;
            let outcome = outcome(&response);
            let known = detail.0.lock().clone();
            match known {
                Known::Looks => {}
                Known::Changes(detail) => record(&shared, Entry { who, from, call, detail, outcome }).await,
                Known::Nothing => {
                    refused(&shared, Entry { who, from, call, detail: NOTHING_KNOWN.into(), outcome }).await
                }
            }
            Ok(response)
        });
        Box::pin(async move {
            let ended = |_| Ok(Status::internal("the call ended without an answer; see the node's log").into_http());
            whole.await.unwrap_or_else(ended)
        })
    }
}

/// The detail of a call of which nothing is known.
const NOTHING_KNOWN: &str = "not looked at";

/// An answer, or that there was none in time.
async fn in_time(
    answer: impl Future<Output = Result<http::Response<Body>, Infallible>>,
) -> Result<http::Response<Body>, Infallible> {
    tokio::time::timeout(ADMIN_CALL_TIME_MAX, answer).await.unwrap_or_else(|_| {
        let text = format!(
            "no answer within {} s; what was asked may have been done, and may yet be",
            ADMIN_CALL_TIME_MAX.as_secs()
        );
        Ok(Status::deadline_exceeded(text).into_http())
    })
}

fn outcome(response: &http::Response<Body>) -> String {
    match Status::from_header_map(response.headers()) {
        Some(status) if status.code() != tonic::Code::Ok => {
            cut(format!("{:?}: {}", status.code(), status.message()), OUTCOME_BYTES_MAX)
        }
        _ => "ok".to_owned(),
    }
}

/// Where a call came from.
fn remote(extensions: &http::Extensions) -> String {
    let plain = extensions.get::<TcpConnectInfo>();
    let secured = extensions.get::<tonic::transport::server::TlsConnectInfo<TcpConnectInfo>>();
    let info = plain.or_else(|| secured.map(|secured| secured.get_ref()));
    info.and_then(TcpConnectInfo::remote_addr).map(|address| address.to_string()).unwrap_or_default()
}

struct Entry {
    who: String,
    from: String,
    call: &'static str,
    detail: String,
    outcome: String,
}

/// A call that was refused, before it was known what it is about: recorded, or counted.
async fn refused<E: Engine>(shared: &Arc<Shared<E>>, entry: Entry) {
    match shared.trail.refusals.one_more(&entry.who, Instant::now()) {
        Becomes::Record => record(shared, entry).await,
        Becomes::Count => {}
        Becomes::CountFirst(due) => {
            let shared = shared.clone();
            tokio::spawn(async move {
                tokio::select! {
                    () = tokio::time::sleep_until(due.into()) => sum_up(&shared, Some(due)).await,
                    () = shared.drain.cancelled() => {} // the door's end sums up
                }
            });
        }
    }
}

/// Records the sums of refusals that are due; all of them where no time is given.
pub(crate) async fn sum_up<E: Engine>(shared: &Arc<Shared<E>>, due: Option<Instant>) {
    let mut storing = Vec::new();
    for sum in shared.trail.refusals.take_sums(due) {
        let minutes = WINDOW.as_secs() / 60;
        let detail = format!("{} more calls beside those recorded, within {minutes} minutes or less", sum.calls);
        let entry =
            Entry { who: sum.who, from: String::new(), call: REFUSED_CALLS, detail, outcome: "refused".to_owned() };
        storing.extend(write(shared, entry));
    }
    let all = async {
        for stored in storing {
            let _ = stored.await;
        }
    };
    let _ = tokio::time::timeout(RECORD_WITHIN, all).await;
}

async fn record<E: Engine>(shared: &Arc<Shared<E>>, entry: Entry) {
    if let Some(stored) = write(shared, entry)
        && tokio::time::timeout(RECORD_WITHIN, stored).await.is_err()
    {
        tracing::warn!("an admin call's record is not stored yet; the call is answered all the same");
    }
}

/// Writes a record to the log, and begins to store it where that is done.
fn write<E: Engine>(shared: &Arc<Shared<E>>, entry: Entry) -> Option<JoinHandle<()>> {
    let Entry { who, from, call, detail, outcome } = entry;
    tracing::info!(target: levels::AUDIT, %who, %from, %call, %detail, %outcome, "admin call");
    let (_, node, kind) = shared.engine.identity();
    if kind != NodeKind::Edge {
        return None;
    }
    let at = OffsetDateTime::now_utc().format(&Rfc3339).unwrap_or_default();
    let text = serde_json::json!({
        "time": at, "node": node.to_string(), "who": who, "from": from, "call": call, "detail": detail, "outcome": outcome,
    });
    let Ok(path) = format!("{TOPIC}/{call}").parse::<Path>() else {
        DoorCounters::count(&shared.counters.audit_failures);
        return None;
    };
    let payload = Bytes::from(text.to_string());
    let permits = u32::try_from(payload.len().div_ceil(PERMIT_BYTES)).unwrap_or(u32::MAX);
    let Ok(room) = shared.trail.pending.clone().try_acquire_many_owned(permits) else {
        DoorCounters::count(&shared.counters.audit_failures);
        tracing::warn!("too many records of admin calls wait for the commit log; this one is in this log alone");
        return None;
    };
    let storing = shared.clone();
    Some(tokio::spawn(async move {
        let _room = room;
        if let Err(error) = storing.engine.record(path, payload).await {
            DoorCounters::count(&storing.counters.audit_failures);
            tracing::warn!("an admin call's record could not be stored, and is in this log alone: {error}");
        }
    }))
}
