//! The audit trail: every call that changes a node, with who, what, when and its outcome, in a topic of its own.
//!
//! A record is a message of topic [`TOPIC`], published through the node's own publish path, so it is as durable and as readable as any
//! other: `seaway sub _audit --from earliest`, for callers with the admin right that showed a token or a certificate. Nobody can
//! publish there, and no `#` matches it. Its retention is a quarter of a year and [`RETENTION_BYTES`] a log, unless a `[[topic]]` section with the
//! pattern `_audit` says otherwise. A relay stores no messages: it has the same records in its log alone, under the target `seaway::audit`.
//!
//! What is recorded is decided here and not in each call: all that is not known to be mere looking ([`LOOKING`]), refusals of callers who are
//! known included, so a call that is added is recorded from its first day. A call that was begun is carried out and recorded although
//! its client leaves. It waits for its record's durability, but no longer than [`RECORD_WITHIN`]: a log that is slow, or takes nothing, makes
//! no node that cannot be steered. Records that were not stored are counted.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use parking_lot::Mutex;
use seaway_federation_proto::{ids::Path, session::NodeKind};
use seaway_relay::node::AUDIT_TOPIC as TOPIC;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use tonic::{
    Extensions, Status,
    body::Body,
    codegen::{Service, http},
    server::NamedService,
    transport::server::TcpConnectInfo,
};

use super::shared::{DoorCounters, Shared};
use crate::{auth::Caller, engine::Engine};

/// How long a call waits for its record at most.
pub(crate) const RECORD_WITHIN: Duration = Duration::from_secs(1);
/// Longest detail of a record, bytes.
const DETAIL_BYTES_MAX: usize = 4096;
/// Calls that change nothing.
pub(crate) const LOOKING: [&str; 6] = ["Status", "List", "Get", "Find", "Topology", "ExplainRoute"];

/// What a call was about, as its handler says: a name, a key; never a secret.
#[derive(Debug, Clone, Default)]
struct Detail(Arc<Mutex<String>>);

/// Says what the call is about.
pub(crate) fn note(extensions: &Extensions, detail: impl FnOnce() -> String) {
    if let Some(noted) = extensions.get::<Detail>() {
        let mut text = detail();
        let end = (0..=DETAIL_BYTES_MAX.min(text.len())).rev().find(|at| text.is_char_boundary(*at));
        text.truncate(end.unwrap_or(0));
        *noted.0.lock() = text;
    }
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
        let call = request.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
        if LOOKING.iter().any(|looking| call.starts_with(looking)) {
            return Box::pin(self.inner.call(request));
        }
        let detail = Detail::default();
        request.extensions_mut().insert(detail.clone());
        let who = Caller::of(request.extensions()).map(|caller| caller.name.clone()).unwrap_or_default();
        let from = remote(request.extensions());
        let (answer, shared) = (self.inner.call(request), self.shared.clone());
        // To its end, although the client may leave.
        let whole = tokio::spawn(async move {
            let response = answer.await?;
            let outcome = match Status::from_header_map(response.headers()) {
                Some(status) if status.code() != tonic::Code::Ok => {
                    format!("{:?}: {}", status.code(), status.message())
                }
                _ => "ok".to_owned(),
            };
            let detail = detail.0.lock().clone();
            record(&shared, Entry { who, from, call, detail, outcome }).await;
            Ok(response)
        });
        Box::pin(async move {
            let ended = |_| Ok(Status::internal("the call ended without an answer; see the node's log").into_http());
            whole.await.unwrap_or_else(ended)
        })
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
    call: String,
    detail: String,
    outcome: String,
}

async fn record<E: Engine>(shared: &Arc<Shared<E>>, entry: Entry) {
    let Entry { who, from, call, detail, outcome } = entry;
    tracing::info!(target: "seaway::audit", %who, %from, %call, %detail, %outcome, "admin call");
    let (_, node, kind) = shared.engine.identity();
    if kind != NodeKind::Edge {
        return;
    }
    let at = OffsetDateTime::now_utc().format(&Rfc3339).unwrap_or_default();
    let text = serde_json::json!({
        "time": at, "node": node.to_string(), "who": who, "from": from, "call": call, "detail": detail, "outcome": outcome,
    });
    let Ok(path) = format!("{TOPIC}/{call}").parse::<Path>() else {
        return DoorCounters::count(&shared.counters.audit_failures);
    };
    let payload = Bytes::from(text.to_string());
    let storing = shared.clone();
    let stored = tokio::spawn(async move {
        if let Err(error) = storing.engine.record(path, payload).await {
            DoorCounters::count(&storing.counters.audit_failures);
            tracing::warn!("an admin call's record could not be stored, and is in this log alone: {error}");
        }
    });
    if tokio::time::timeout(RECORD_WITHIN, stored).await.is_err() {
        tracing::warn!("an admin call's record is not stored yet; the call is answered all the same");
    }
}
