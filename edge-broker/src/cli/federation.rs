//! Commands that ask about the whole federation: `find`, `topology`, `route explain`.

use std::time::Duration;

use serde::Serialize;

use super::{
    CliError, Exit,
    args::{ExplainArgs, FindArgs, ListArgs, Output},
    client::Servers,
    json::parse_position,
    output::{self, Table},
};
use crate::{
    api::{self, ExplainRouteRequest, FindRequest, FindState, MessageId, TopologyRequest},
    grpc::federation::away,
};

/// How a state of a message is called; permanent.
fn state_name(state: FindState) -> &'static str {
    match state {
        FindState::Unknown => "unknown",
        FindState::Here => "here",
        FindState::OnTheWay => "on-the-way",
        FindState::Lagging => "lagging",
        FindState::Filtered => "filtered",
        FindState::Expired => "expired",
        FindState::Lost => "lost",
        FindState::Deleted => "deleted",
        FindState::NeverPublished => "never-published",
    }
}

/// What a site or relay says of a message.
#[derive(Debug, Serialize)]
struct FoundView {
    node: String,
    /// Relays answer only where they hold it.
    is_site: bool,
    state: &'static str,
    lag_messages: u64,
    text: String,
}

#[derive(Debug, Serialize)]
struct FindView {
    found: bool,
    /// Whether every site answered.
    complete: bool,
    answers: Vec<FoundView>,
    missing: Vec<MissingView>,
}

#[derive(Debug, Serialize)]
struct MissingView {
    site: String,
    /// Whether there is a way to it, on which no answer came.
    asked: bool,
    why: String,
}

/// Where a message is. Ends with 0 where some site has it, with 1 where none has, with 4 where not every site answered.
pub(crate) async fn find(args: FindArgs) -> Result<Exit, CliError> {
    let id = parse_position(&args.message).ok_or_else(|| {
        CliError::usage(format!(
            "{:?} is no message id; it is written TOPIC@SITE#QUEUE=COUNTER.RANDOM:OFFSET, as `pub --receipts` and `sub --output \
             json` print it under \"position\"",
            args.message
        ))
    })?;
    let id = MessageId { topic: id.topic, origin: id.origin, queue: id.queue, place: id.place };
    let deadline_ms = u64::try_from(args.deadline.unwrap_or(Duration::ZERO).as_millis()).unwrap_or(u64::MAX);
    let mut admin = Servers::of(&args.client)?.admin().await?;
    let reply = admin.find(FindRequest { id: Some(id), deadline_ms }).await?.into_inner();
    let answer = |answer: api::FindAnswer| FoundView {
        state: state_name(answer.state()),
        node: answer.node,
        is_site: answer.is_site,
        lag_messages: answer.lag_messages,
        text: answer.text,
    };
    let answers: Vec<FoundView> = reply.answers.into_iter().map(answer).collect();
    let missing: Vec<_> =
        reply.missing.into_iter().map(|m| MissingView { site: m.site, asked: m.asked, why: m.why }).collect();
    let found = answers.iter().any(|answer| answer.is_site && answer.state == "here");
    let view = FindView { found, complete: missing.is_empty(), answers, missing };
    match args.output {
        Output::Json => output::json(&view)?,
        Output::Table => output::bytes(find_table(&view).render().as_bytes())?,
    }
    Ok(match (view.complete, view.found) {
        (false, _) => Exit::TimedOut,
        (true, true) => Exit::Done,
        (true, false) => Exit::Failed,
    })
}

fn find_table(view: &FindView) -> Table {
    let mut table = Table::new(&["AT", "STATE", ">LAG", "WHAT"]);
    for answer in &view.answers {
        let lag = if answer.lag_messages > 0 { answer.lag_messages.to_string() } else { "-".into() };
        let at = if answer.is_site { answer.node.clone() } else { format!("{} (relay)", answer.node) };
        table.row([at, answer.state.to_owned(), lag, answer.text.clone()]);
    }
    for missing in &view.missing {
        let state = if missing.asked { "no answer" } else { "cannot be asked" };
        table.row([missing.site.clone(), state.into(), "-".into(), missing.why.clone()]);
    }
    table
}

/// A node of the federation.
#[derive(Debug, Serialize)]
struct NodeView {
    node: String,
    kind: String,
    state: String,
    away_for_ms: u64,
    reason: String,
    no_transit: bool,
    cost: u32,
    through_no_transit: bool,
    record_age_ms: u64,
}

/// A link of the federation.
#[derive(Debug, Serialize)]
struct EdgeView {
    a: String,
    b: String,
    cost_a: u32,
    cost_b: u32,
    cost: u32,
    state: String,
    reason: String,
}

#[derive(Debug, Serialize)]
struct TopologyView {
    nodes: Vec<NodeView>,
    links: Vec<EdgeView>,
}

/// Nodes and links as the server knows them.
pub(crate) async fn topology(args: ListArgs) -> Result<Exit, CliError> {
    let mut admin = Servers::of(&args.client)?.admin().await?;
    let reply = admin.topology(TopologyRequest {}).await?.into_inner();
    let node = |n: api::TopologyNode| NodeView {
        node: n.node,
        kind: n.kind,
        state: n.state,
        away_for_ms: n.away_for_ms,
        reason: n.reason,
        no_transit: n.no_transit,
        cost: n.cost,
        through_no_transit: n.through_no_transit,
        record_age_ms: n.record_age_ms,
    };
    let link = |l: api::TopologyLink| EdgeView {
        a: l.a,
        b: l.b,
        cost_a: l.cost_a,
        cost_b: l.cost_b,
        cost: l.cost,
        state: l.state,
        reason: l.reason,
    };
    let view = TopologyView {
        nodes: reply.nodes.into_iter().map(node).collect(),
        links: reply.links.into_iter().map(link).collect(),
    };
    match args.output {
        Output::Json => output::json(&view)?,
        Output::Table => output::bytes(topology_text(&view).as_bytes())?,
    }
    Ok(Exit::Done)
}

fn topology_text(view: &TopologyView) -> String {
    let mut nodes = Table::new(&["NODE", "KIND", "STATE", ">COST", "TRANSIT", "HEARD", "REASON"]);
    for node in &view.nodes {
        let away_for = if node.away_for_ms > 0 { format!(" for {}", away(node.away_for_ms)) } else { String::new() };
        nodes.row([
            node.node.clone(),
            node.kind.clone(),
            format!("{}{away_for}", node.state),
            if node.state == "away" { "-".into() } else { node.cost.to_string() },
            if node.no_transit { "no".into() } else { "yes".into() },
            if node.kind.is_empty() || node.record_age_ms == 0 { "-".into() } else { away(node.record_age_ms) },
            match node.through_no_transit {
                true => "through a drained node".to_owned(),
                false => node.reason.clone(),
            },
        ]);
    }
    let mut links = Table::new(&["LINK", "", ">COST", "STATE", "REASON"]);
    for link in &view.links {
        let cost = if link.cost == 0 { "-".into() } else { link.cost.to_string() };
        links.row([link.a.clone(), link.b.clone(), cost, link.state.clone(), link.reason.clone()]);
    }
    format!("{}\n{}", nodes.render(), links.render())
}

#[derive(Debug, Serialize)]
struct HopView {
    node: String,
    cost: u32,
    cost_so_far: u64,
    state: String,
}

#[derive(Debug, Serialize)]
struct OtherView {
    by: String,
    cost: Option<u64>,
    why_not: String,
}

#[derive(Debug, Serialize)]
struct RouteView {
    text: String,
    cost: u64,
    hops: Vec<HopView>,
    others: Vec<OtherView>,
}

/// The way from one site to another. Ends with 1 where there is none.
pub(crate) async fn explain(args: ExplainArgs) -> Result<Exit, CliError> {
    let mut admin = Servers::of(&args.list.client)?.admin().await?;
    let request = ExplainRouteRequest { path: args.path, from_site: args.from, to_site: args.to };
    let reply = admin.explain_route(request).await?.into_inner();
    let hop = |h: api::RouteHop| HopView { node: h.node, cost: h.cost, cost_so_far: h.cost_so_far, state: h.state };
    let other = |o: api::RouteOther| OtherView { by: o.by, cost: (o.cost > 0).then_some(o.cost), why_not: o.why_not };
    let view = RouteView {
        text: reply.text,
        cost: reply.cost,
        hops: reply.hops.into_iter().map(hop).collect(),
        others: reply.others.into_iter().map(other).collect(),
    };
    match args.list.output {
        Output::Json => output::json(&view)?,
        Output::Table => output::bytes(route_text(&view).as_bytes())?,
    }
    Ok(if view.hops.is_empty() { Exit::Failed } else { Exit::Done })
}

fn route_text(view: &RouteView) -> String {
    let mut text = format!("{}\n", view.text);
    let mut hops = Table::new(&["HOP", ">COST", ">SO FAR", "LINK"]);
    for hop in &view.hops {
        hops.row([hop.node.clone(), hop.cost.to_string(), hop.cost_so_far.to_string(), hop.state.clone()]);
    }
    let mut others = Table::new(&["NOT BY", ">COST", "WHY"]);
    for other in &view.others {
        let cost = other.cost.map_or_else(|| "-".into(), |cost| cost.to_string());
        others.row([other.by.clone(), cost, other.why_not.clone()]);
    }
    for table in [hops, others] {
        if !table.is_empty() {
            text.push_str(&format!("\n{}", table.render()));
        }
    }
    text
}
