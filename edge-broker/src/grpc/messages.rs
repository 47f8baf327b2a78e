//! The service for publishing and subscribing.

use std::{sync::Arc, time::Instant};

use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::{
    publish::Publisher,
    shared::Shared,
    subscribe::{self, ReplyStream},
};
use crate::{
    api::{PublishBatch, PublishReply, PublishRequest, Receipt, SubscribeRequest, messages_server::Messages},
    auth::Caller,
    engine::Engine,
};

/// Metadata of a publish stream's answer: the site that stores what is published on it.
pub(crate) const SITE_KEY: &str = "seaway-site";

/// The service.
pub(crate) struct MessagesService<E: Engine> {
    /// What the door's services share.
    pub(crate) shared: Arc<Shared<E>>,
}

impl<E: Engine> MessagesService<E> {
    fn publisher(&self, caller: Arc<Caller>) -> Publisher<E> {
        let rate = self.shared.rates.of(&caller.name, Instant::now());
        Publisher { shared: self.shared.clone(), caller, rate }
    }
}

#[tonic::async_trait]
impl<E: Engine> Messages for MessagesService<E> {
    type PublishStreamStream = ReceiverStream<Result<PublishReply, Status>>;
    type SubscribeStream = ReplyStream;

    async fn publish(&self, request: Request<PublishRequest>) -> Result<Response<Receipt>, Status> {
        let caller = Caller::of(request.extensions())?;
        self.publisher(caller).publish(request.into_inner()).await.map(Response::new)
    }

    async fn publish_stream(
        &self,
        request: Request<Streaming<PublishBatch>>,
    ) -> Result<Response<Self::PublishStreamStream>, Status> {
        let caller = Caller::of(request.extensions())?;
        let (_, node, _) = self.shared.engine.identity();
        let replies = self.publisher(caller).publish_stream(request.into_inner());
        let mut response = Response::new(ReceiverStream::new(replies));
        // A publisher that comes back after a break must know whether it is at the same site.
        if let Ok(site) = node.site.as_str().parse() {
            response.metadata_mut().insert(SITE_KEY, site);
        }
        Ok(response)
    }

    async fn subscribe(
        &self,
        request: Request<Streaming<SubscribeRequest>>,
    ) -> Result<Response<Self::SubscribeStream>, Status> {
        let caller = Caller::of(request.extensions())?;
        let replies = subscribe::subscribe(self.shared.clone(), caller, request.into_inner()).await?;
        Ok(Response::new(replies))
    }
}
