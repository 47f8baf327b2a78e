//! The service for seeing and steering a node.

use std::sync::{Arc, atomic::Ordering::Relaxed};

use seaway_federation_proto::ids::Pattern;
use tonic::{Request, Response, Status};

use super::{
    audit, errors, federation, limits,
    pages::{page, split},
    queues,
    shared::Shared,
    sites, status,
    told::Told,
    topics,
};
use crate::{
    api::{self, admin_server::Admin},
    auth::{Caller, tokens},
    door::Rights,
    engine::Engine,
    steering::Steer,
};

/// The service.
pub(crate) struct AdminService<E: Engine> {
    /// What the door's services share.
    pub(crate) shared: Arc<Shared<E>>,
}

impl<E: Engine> AdminService<E> {
    fn check_see<T>(&self, request: &Request<T>) -> Result<(), Status> {
        self.counted(Caller::of(request.extensions()).and_then(|caller| caller.check_see()))
    }

    /// Whether the caller may look at what only those see who may change the node.
    fn check_admin<T>(&self, request: &Request<T>) -> Result<(), Status> {
        self.counted(Caller::of(request.extensions()).and_then(|caller| caller.check_steer()))
    }

    /// Whether the caller may change the node. If so, the call's record says from here on what it is about; of a caller who may not
    /// nothing is taken down but the call.
    fn check_steer<T: Told>(&self, request: &Request<T>) -> Result<(), Status> {
        self.check_admin(request)?;
        audit::note(request.extensions(), request.get_ref());
        Ok(())
    }

    /// What steers the process, for a caller who may; and its name.
    fn steering<T: Told>(&self, request: &Request<T>) -> Result<(Arc<dyn Steer>, String), Status> {
        self.check_steer(request)?;
        self.process(request)
    }

    fn process<T>(&self, request: &Request<T>) -> Result<(Arc<dyn Steer>, String), Status> {
        let by = Caller::of(request.extensions())?.name.clone();
        let steering = self.shared.steering.get().cloned();
        Ok((steering.ok_or_else(|| errors::unavailable("the node is not up yet; ask again later"))?, by))
    }

    /// Who may see the node, or read all of the message's topic.
    fn check_find(&self, request: &Request<api::FindRequest>) -> Result<(), Status> {
        let caller = Caller::of(request.extensions())?;
        let topic = request.get_ref().id.as_ref().map(|id| id.topic.as_str()).unwrap_or_default();
        let own = topic.starts_with(['_', '$']);
        let reads = |pattern: Pattern| !own && caller.check_subscribe(&pattern).is_ok();
        if format!("{topic}/#").parse().is_ok_and(reads) {
            return Ok(());
        }
        self.counted(caller.check_see())
    }

    fn counted(&self, result: Result<(), Status>) -> Result<(), Status> {
        if result.is_err() {
            self.shared.counters.not_allowed.fetch_add(1, Relaxed);
        }
        result
    }
}

/// Runs what takes the hub's lock for each of perhaps many logs where it holds up no other call.
async fn aside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Status> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|_| errors::unavailable("looking through the logs failed; try again"))
}

#[tonic::async_trait]
impl<E: Engine> Admin for AdminService<E> {
    async fn status(&self, request: Request<api::StatusRequest>) -> Result<Response<api::StatusReply>, Status> {
        self.check_see(&request)?;
        let shared = self.shared.clone();
        Ok(Response::new(aside(move || status::status(&shared)).await?))
    }

    async fn list_links(
        &self,
        request: Request<api::ListLinksRequest>,
    ) -> Result<Response<api::ListLinksReply>, Status> {
        self.check_see(&request)?;
        let request = request.into_inner();
        let links = status::keyed_links(&self.shared.engine);
        let (links, next_page_token) = page(links, &request.page_token, request.page_size);
        Ok(Response::new(api::ListLinksReply { links, next_page_token }))
    }

    async fn list_topics(
        &self,
        request: Request<api::ListTopicsRequest>,
    ) -> Result<Response<api::ListTopicsReply>, Status> {
        self.check_see(&request)?;
        let (engine, request) = (self.shared.engine.clone(), request.into_inner());
        let listed = move || page(status::topics(&engine, &request.topic), &request.page_token, request.page_size);
        let (topics, next_page_token) = aside(listed).await?;
        Ok(Response::new(api::ListTopicsReply { topics, next_page_token }))
    }

    async fn list_groups(
        &self,
        request: Request<api::ListGroupsRequest>,
    ) -> Result<Response<api::ListGroupsReply>, Status> {
        self.check_see(&request)?;
        let request = request.into_inner();
        let groups = self.shared.groups.list(&request.group).await.into_iter().flat_map(|mut whole| {
            let positions = std::mem::take(&mut whole.positions);
            split(&whole.name, positions, |positions| api::Group { positions, ..whole.clone() })
        });
        let (groups, next_page_token) = page(groups, &request.page_token, request.page_size);
        Ok(Response::new(api::ListGroupsReply { groups, next_page_token }))
    }

    async fn delete_group(
        &self,
        request: Request<api::DeleteGroupRequest>,
    ) -> Result<Response<api::DeleteGroupReply>, Status> {
        self.check_steer(&request)?;
        self.shared.groups.delete(&request.into_inner().group).await?;
        Ok(Response::new(api::DeleteGroupReply {}))
    }

    async fn list_sites(
        &self,
        request: Request<api::ListSitesRequest>,
    ) -> Result<Response<api::ListSitesReply>, Status> {
        self.check_see(&request)?;
        let (engine, request) = (self.shared.engine.clone(), request.into_inner());
        let listed = move || page(sites::sites(&engine), &request.page_token, request.page_size);
        let (sites, next_page_token) = aside(listed).await?;
        Ok(Response::new(api::ListSitesReply { sites, next_page_token }))
    }

    async fn find(&self, request: Request<api::FindRequest>) -> Result<Response<api::FindReply>, Status> {
        self.check_find(&request)?;
        Ok(Response::new(federation::find(&self.shared.engine, request.into_inner()).await?))
    }

    async fn topology(&self, request: Request<api::TopologyRequest>) -> Result<Response<api::TopologyReply>, Status> {
        self.check_see(&request)?;
        let engine = self.shared.engine.clone();
        Ok(Response::new(aside(move || federation::topology(&engine)).await?))
    }

    async fn explain_route(
        &self,
        request: Request<api::ExplainRouteRequest>,
    ) -> Result<Response<api::ExplainRouteReply>, Status> {
        self.check_see(&request)?;
        let (engine, request) = (self.shared.engine.clone(), request.into_inner());
        Ok(Response::new(aside(move || federation::explain(&engine, &request)).await??))
    }

    async fn remove_site(
        &self,
        request: Request<api::RemoveSiteRequest>,
    ) -> Result<Response<api::RemoveSiteReply>, Status> {
        self.check_steer(&request)?;
        Ok(Response::new(sites::remove(&self.shared.engine, request.into_inner()).await?))
    }

    async fn create_token(
        &self,
        request: Request<api::CreateTokenRequest>,
    ) -> Result<Response<api::CreateTokenReply>, Status> {
        self.check_steer(&request)?;
        let request = request.into_inner();
        let asked = request.rights.unwrap_or_default();
        let rights = Rights {
            publish: tokens::patterns(&asked.publish).map_err(errors::invalid)?,
            subscribe: tokens::patterns(&asked.subscribe).map_err(errors::invalid)?,
            admin: asked.admin,
        };
        let token = self.shared.tokens.create(&request.name, rights, request.expires_us).await?;
        Ok(Response::new(api::CreateTokenReply { token }))
    }

    async fn list_tokens(
        &self,
        request: Request<api::ListTokensRequest>,
    ) -> Result<Response<api::ListTokensReply>, Status> {
        self.check_admin(&request)?;
        let request = request.into_inner();
        let tokens =
            self.shared.tokens.list().into_iter().map(|t| (format!("{}\u{1}{}", t.name, t.from), status::token(&t)));
        let (tokens, next_page_token) = page(tokens, &request.page_token, request.page_size);
        Ok(Response::new(api::ListTokensReply { tokens, next_page_token }))
    }

    async fn create_topic(
        &self,
        request: Request<api::CreateTopicRequest>,
    ) -> Result<Response<api::CreateTopicReply>, Status> {
        self.check_steer(&request)?;
        let api::CreateTopicRequest { topic, change } = request.into_inner();
        topics::create(&self.shared, &topic, change.unwrap_or_default()).await?;
        Ok(Response::new(api::CreateTopicReply {}))
    }

    async fn set_topic(&self, request: Request<api::SetTopicRequest>) -> Result<Response<api::SetTopicReply>, Status> {
        self.check_steer(&request)?;
        let api::SetTopicRequest { topic, change } = request.into_inner();
        topics::set(&self.shared, &topic, change.unwrap_or_default()).await?;
        Ok(Response::new(api::SetTopicReply {}))
    }

    async fn trim_topic(
        &self,
        request: Request<api::TrimTopicRequest>,
    ) -> Result<Response<api::TrimTopicReply>, Status> {
        self.check_steer(&request)?;
        Ok(Response::new(topics::trim(&self.shared, request.into_inner()).await?))
    }

    async fn skip_topic(
        &self,
        request: Request<api::SkipTopicRequest>,
    ) -> Result<Response<api::SkipTopicReply>, Status> {
        self.check_steer(&request)?;
        Ok(Response::new(topics::skip(&self.shared, request.into_inner())?))
    }

    async fn remove_topic(
        &self,
        request: Request<api::RemoveTopicRequest>,
    ) -> Result<Response<api::RemoveTopicReply>, Status> {
        self.check_steer(&request)?;
        let api::RemoveTopicRequest { topic, force } = request.into_inner();
        Ok(Response::new(topics::remove(&self.shared, &topic, force).await?))
    }

    async fn list_limits(
        &self,
        request: Request<api::ListLimitsRequest>,
    ) -> Result<Response<api::ListLimitsReply>, Status> {
        self.check_see(&request)?;
        let (shared, request) = (self.shared.clone(), request.into_inner());
        let listed = move || page(limits::list(&shared).into_iter(), &request.page_token, request.page_size);
        let (limits, next_page_token) = aside(listed).await?;
        Ok(Response::new(api::ListLimitsReply { limits, next_page_token }))
    }

    async fn list_queues(
        &self,
        request: Request<api::ListQueuesRequest>,
    ) -> Result<Response<api::ListQueuesReply>, Status> {
        self.check_see(&request)?;
        let (shared, request) = (self.shared.clone(), request.into_inner());
        let listed = move || page(queues::list(&shared).into_iter(), &request.page_token, request.page_size);
        let (queues, next_page_token) = aside(listed).await?;
        Ok(Response::new(api::ListQueuesReply { queues, next_page_token }))
    }

    async fn set_limit(&self, request: Request<api::SetLimitRequest>) -> Result<Response<api::SetLimitReply>, Status> {
        self.check_steer(&request)?;
        limits::set(&self.shared, request.into_inner()).await?;
        Ok(Response::new(api::SetLimitReply {}))
    }

    async fn remove_limit(
        &self,
        request: Request<api::RemoveLimitRequest>,
    ) -> Result<Response<api::RemoveLimitReply>, Status> {
        self.check_steer(&request)?;
        limits::remove(&self.shared, request.into_inner().subject).await?;
        Ok(Response::new(api::RemoveLimitReply {}))
    }

    async fn revoke_token(
        &self,
        request: Request<api::RevokeTokenRequest>,
    ) -> Result<Response<api::RevokeTokenReply>, Status> {
        self.check_steer(&request)?;
        self.shared.tokens.revoke(&request.into_inner().name).await?;
        Ok(Response::new(api::RevokeTokenReply {}))
    }

    async fn drain(&self, request: Request<api::DrainRequest>) -> Result<Response<api::DrainReply>, Status> {
        let (steering, by) = self.steering(&request)?;
        Ok(Response::new(steering.drain(request.into_inner().undo, &by)))
    }

    async fn pause_link(
        &self,
        request: Request<api::PauseLinkRequest>,
    ) -> Result<Response<api::PauseLinkReply>, Status> {
        let (steering, by) = self.steering(&request)?;
        steering.pause_link(&request.into_inner().peer, &by)?;
        Ok(Response::new(api::PauseLinkReply {}))
    }

    async fn resume_link(
        &self,
        request: Request<api::ResumeLinkRequest>,
    ) -> Result<Response<api::ResumeLinkReply>, Status> {
        let (steering, _) = self.steering(&request)?;
        let was_paused = steering.resume_link(&request.into_inner().peer)?;
        Ok(Response::new(api::ResumeLinkReply { was_paused }))
    }

    async fn reload_config(
        &self,
        request: Request<api::ReloadConfigRequest>,
    ) -> Result<Response<api::ReloadConfigReply>, Status> {
        let (steering, _) = self.steering(&request)?;
        steering.reload().await.map(Response::new)
    }

    async fn set_log_level(
        &self,
        request: Request<api::SetLogLevelRequest>,
    ) -> Result<Response<api::LogLevels>, Status> {
        let (steering, by) = self.steering(&request)?;
        steering.set_level(&request.into_inner(), &by).map(Response::new)
    }

    async fn get_log_levels(
        &self,
        request: Request<api::GetLogLevelsRequest>,
    ) -> Result<Response<api::LogLevels>, Status> {
        self.check_admin(&request)?;
        let (steering, _) = self.process(&request)?;
        Ok(Response::new(steering.levels()))
    }
}
