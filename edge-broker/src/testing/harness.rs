//! A door on loopback, and clients that wait with generous timeouts.

use std::{net::SocketAddr, time::Duration};

use tokio::{
    sync::{mpsc, oneshot},
    task::JoinHandle,
};
use tokio_stream::{StreamExt, wrappers::ReceiverStream};
use tonic::{Status, Streaming, transport::Channel};

use crate::{
    api::{
        self, Message, MessageId, PublishRequest, SubscribeReply, SubscribeRequest,
        admin_client::AdminClient,
        messages_client::MessagesClient,
        subscribe_reply::{Confirmed, Kind},
        subscribe_request::{self, Confirm, Credit, Open, open::From},
    },
    door::{Door, DoorConfig, DoorError, Rights},
    engine::Engine,
};

/// How long a test waits before it says that something never came.
const PATIENCE: Duration = Duration::from_secs(60);

/// Waits, but not for ever.
pub(crate) async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(value) => value,
        Err(_) => panic!("{what} did not happen within {PATIENCE:?}"),
    }
}

/// Rights to everything.
pub(crate) fn all_rights() -> Rights {
    Rights { publish: vec!["#".parse().unwrap()], subscribe: vec!["#".parse().unwrap()], admin: true }
}

/// A door that serves.
pub(crate) struct Harness {
    pub(crate) address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    serving: Option<JoinHandle<Result<(), DoorError>>>,
}

impl Harness {
    /// A door that lets everybody in.
    pub(crate) async fn start<E: Engine>(engine: &E) -> Self {
        Self::start_with(engine, |_| {}).await
    }

    /// A door with other settings.
    pub(crate) async fn start_with<E: Engine>(engine: &E, change: impl FnOnce(&mut DoorConfig)) -> Self {
        let mut config = DoorConfig::new(([127, 0, 0, 1], 0).into());
        config.auth.anonymous = Some(all_rights());
        config.auth.federation = "test".into();
        change(&mut config);
        Self::serve(Door::open(config, engine.clone()).await.unwrap())
    }

    /// A door that is open.
    pub(crate) fn serve<E: Engine>(door: Door<E>) -> Self {
        let address = door.address();
        let (stop, stopped) = oneshot::channel::<()>();
        let serving = tokio::spawn(door.serve(async move {
            let _ = stopped.await;
        }));
        Self { address, stop: Some(stop), serving: Some(serving) }
    }

    pub(crate) async fn channel(&self) -> Channel {
        let endpoint = Channel::from_shared(format!("http://{}", self.address)).unwrap();
        soon("a connection", endpoint.connect()).await.unwrap()
    }

    pub(crate) async fn messages(&self) -> MessagesClient<Channel> {
        MessagesClient::new(self.channel().await)
            .max_decoding_message_size(64 << 20)
            .max_encoding_message_size(64 << 20)
    }

    pub(crate) async fn admin(&self) -> AdminClient<Channel> {
        AdminClient::new(self.channel().await)
    }

    /// Tells the door to drain.
    pub(crate) fn drain(&mut self) {
        drop(self.stop.take());
    }

    /// Drains the door and waits until it is closed.
    pub(crate) async fn stop(mut self) {
        self.drain();
        soon("the door's end", self.serving.take().unwrap()).await.unwrap().unwrap();
    }

    /// Publishes one message after the other, each durable before the next.
    pub(crate) async fn publish(&self, path: &str, payloads: impl IntoIterator<Item = String>) -> Vec<MessageId> {
        let mut client = self.messages().await;
        let mut ids = Vec::new();
        for payload in payloads {
            let receipt = soon("a receipt", client.publish(request(path, &payload))).await.unwrap().into_inner();
            ids.push(receipt.id.unwrap());
        }
        ids
    }

    /// Opens a subscription.
    pub(crate) async fn subscribe(&self, open: Open) -> Result<Subscriber, Status> {
        Subscriber::open(self.messages().await, open).await
    }
}

/// A request to publish, sync and local.
pub(crate) fn request(path: &str, payload: &str) -> PublishRequest {
    PublishRequest { path: path.into(), payload: payload.to_owned().into(), ..PublishRequest::default() }
}

/// So many numbered payloads.
pub(crate) fn numbered(range: std::ops::Range<usize>) -> Vec<String> {
    range.map(|n| format!("message {n}")).collect()
}

/// An opening request from the earliest place, with plenty of credit.
pub(crate) fn open(pattern: &str) -> Open {
    Open {
        pattern: pattern.into(),
        from: Some(From::Earliest(true)),
        credit: Some(credit(1_000_000)),
        ..Open::default()
    }
}

/// An opening request for a member of a group.
pub(crate) fn member(group: &str, pattern: &str) -> Open {
    Open { group: group.into(), ..open(pattern) }
}

/// Credit for so many messages.
pub(crate) fn credit(messages: u32) -> Credit {
    Credit { messages, bytes: 64 << 20 }
}

/// Payloads as text.
pub(crate) fn payloads(messages: &[Message]) -> Vec<String> {
    messages.iter().map(|m| String::from_utf8(m.payload.to_vec()).unwrap()).collect()
}

/// Ids of messages.
pub(crate) fn ids(messages: &[Message]) -> Vec<MessageId> {
    messages.iter().map(|m| m.id.clone().unwrap()).collect()
}

/// A subscriber over gRPC.
pub(crate) struct Subscriber {
    requests: mpsc::Sender<SubscribeRequest>,
    replies: Streaming<SubscribeReply>,
    /// Messages that came before they were asked for.
    early: Vec<Message>,
}

impl Subscriber {
    /// Opens with this client.
    pub(crate) async fn open<T>(mut client: MessagesClient<T>, open: Open) -> Result<Self, Status>
    where
        T: tonic::client::GrpcService<tonic::body::Body>,
        T::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
        T::ResponseBody: tonic::codegen::Body<Data = bytes::Bytes> + Send + 'static,
        <T::ResponseBody as tonic::codegen::Body>::Error: Into<Box<dyn std::error::Error + Send + Sync>> + Send,
    {
        let (requests, receiver) = mpsc::channel(64);
        requests.send(SubscribeRequest { kind: Some(subscribe_request::Kind::Open(open)) }).await.unwrap();
        let replies = soon("opening", client.subscribe(ReceiverStream::new(receiver))).await?.into_inner();
        let mut subscriber = Self { requests, replies, early: Vec::new() };
        match subscriber.next().await? {
            Some(Kind::Opened(_)) => Ok(subscriber),
            other => panic!("expected the opening, found {other:?}"),
        }
    }

    /// The next reply, `None` at the end of the stream.
    pub(crate) async fn next(&mut self) -> Result<Option<Kind>, Status> {
        match soon("a reply", self.replies.next()).await {
            Some(reply) => Ok(Some(reply?.kind.unwrap())),
            None => Ok(None),
        }
    }

    /// The next so many messages; nothing else may come between.
    pub(crate) async fn messages(&mut self, count: usize) -> Vec<Message> {
        let mut messages = std::mem::take(&mut self.early);
        while messages.len() < count {
            match self.next().await.unwrap() {
                Some(Kind::Messages(more)) => messages.extend(more.messages),
                other => panic!("expected messages, found {other:?}; so far {:?}", payloads(&messages)),
            }
        }
        self.early = messages.split_off(count);
        messages
    }

    /// Asserts that nothing more comes while `work` is done.
    pub(crate) async fn nothing_more(&mut self) {
        assert!(self.early.is_empty(), "unexpected {:?}", payloads(&self.early));
        let more = tokio::time::timeout(Duration::from_millis(300), self.replies.next()).await;
        assert!(more.is_err(), "unexpected {more:?}");
    }

    /// The replies themselves.
    pub(crate) fn replies(&mut self) -> &mut Streaming<SubscribeReply> {
        &mut self.replies
    }

    pub(crate) async fn give(&self, messages: u32) {
        self.send(subscribe_request::Kind::Credit(credit(messages))).await;
    }

    /// Confirms and waits for the answer; messages that come first are kept.
    pub(crate) async fn confirm(&mut self, number: u64, ids: Vec<MessageId>, up_to: bool) -> Confirmed {
        self.send(subscribe_request::Kind::Confirm(Confirm { number, ids, up_to })).await;
        loop {
            match self.next().await.unwrap() {
                Some(Kind::Confirmed(confirmed)) => return confirmed,
                Some(Kind::Messages(more)) => self.early.extend(more.messages),
                other => panic!("expected a confirmation, found {other:?}"),
            }
        }
    }

    pub(crate) async fn send(&self, kind: subscribe_request::Kind) {
        self.requests.send(SubscribeRequest { kind: Some(kind) }).await.unwrap();
    }
}

/// The stable code of a status.
pub(crate) fn code(status: &Status) -> String {
    status.metadata().get(crate::grpc::errors::CODE_KEY).map(|v| v.to_str().unwrap().to_owned()).unwrap_or_default()
}

/// A token of the admin client in requests.
pub(crate) fn with_token<T>(message: T, token: &str) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    request
}

/// The groups as an admin sees them.
pub(crate) async fn group(admin: &mut AdminClient<Channel>, name: &str) -> api::Group {
    let request = api::ListGroupsRequest { group: name.into(), ..Default::default() };
    let groups = soon("the groups", admin.list_groups(request)).await.unwrap().into_inner().groups;
    groups.into_iter().next().unwrap_or_else(|| panic!("no group {name}"))
}
