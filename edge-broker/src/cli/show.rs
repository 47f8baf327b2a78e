//! Commands that show a node: `status`, and the lists of links, topics, groups, sites and tokens.
//!
//! The JSON forms are views of their own, so that the field names stay when the wire's change.

mod disk;
pub(super) mod views;

use super::{
    CliError, Exit,
    args::{ListArgs, NamedListArgs, Output},
    client::Servers,
    output::{self, Table, count, short, size},
};
use crate::api::{
    Group, ListGroupsRequest, ListLinksRequest, ListTokensRequest, ListTopicsRequest, StatusRequest, TopicStatus,
};
use views::{GroupView, LinkView, StatusView, SubscriberView, TokenView, TopicView};

pub(crate) async fn status(args: ListArgs) -> Result<Exit, CliError> {
    let mut admin = Servers::of(&args.client)?.admin().await?;
    let view = StatusView::from(admin.status(StatusRequest {}).await?.into_inner());
    match args.output {
        Output::Json => output::json(&view)?,
        Output::Table => output::bytes(status_text(&view).as_bytes())?,
    }
    Ok(Exit::Done)
}

fn status_text(view: &StatusView) -> String {
    let up = humantime::format_duration(std::time::Duration::from_secs(view.uptime_s));
    let mut text = format!(
        "{} {}/{} of federation {}, version {}: {}, up {up}\n",
        view.kind, view.site, view.node, view.federation, view.version, view.state
    );
    let log = &view.log;
    text.push_str(&format!(
        "commit log: {} in {}, index {}, {} free{}\n",
        size(log.segment_bytes as f64),
        count(log.segments, "segment"),
        size(log.index_bytes as f64),
        size(log.disk_free as f64),
        if log.disk_full {
            " (nearly full: publishes are refused until an eighth more than the reserve is free)"
        } else {
            ""
        },
    ));
    text.push_str(&view.disk.text());
    if !log.poisoned.is_empty() {
        text.push_str(&format!("the log stopped: {}\n", log.poisoned));
    }
    if let Some(held) = &view.hold_back {
        text.push_str(&held.text());
    }
    for damage in &log.damage {
        text.push_str(&format!("damage: {damage}\n"));
    }
    let mut alarms = Table::new(&["ALARM", ">COUNT", "SINCE", "LAST", "WHAT"]);
    for alarm in &view.alarms {
        alarms.row([
            alarm.name.clone(),
            alarm.count.to_string(),
            alarm.since.clone(),
            alarm.last.clone(),
            alarm.text.clone(),
        ]);
    }
    // What people should know first; there may be thousands of topics.
    let tables = [
        ("", alarms),
        ("links\n", links_table(&view.links)),
        ("subscribers that something waits for\n", subscribers_table(&view.subscribers)),
        ("topics\n", topics_table(&view.topics)),
    ];
    for (title, table) in tables {
        if !table.is_empty() {
            text.push_str(&format!("\n{title}{}", table.render()));
        }
    }
    if view.topics_left_out {
        text.push_str("and more topics: 'seaway topic ls' lists all\n");
    }
    let mut counters = Table::new(&["COUNTER", "OF", ">VALUE"]);
    for counter in &view.counters {
        counters.row([counter.name.clone(), counter.label.clone(), counter.value.to_string()]);
    }
    let mut queues = Table::new(&["QUEUE", ">NOW", ">BOUND"]);
    for queue in view.queues.iter().filter(|queue| queue.bytes > 0) {
        queues.row([queue.name.clone(), size(queue.bytes as f64), size(queue.bytes_max as f64)]);
    }
    let mut certificates = Table::new(&["CERTIFICATE", "OF", "EXPIRES"]);
    for one in &view.certificates {
        certificates.row([one.role.clone(), one.holder.clone(), one.expires.clone().unwrap_or_default()]);
    }
    for table in [certificates, counters, queues] {
        if !table.is_empty() {
            text.push_str(&format!("\n{}", table.render()));
        }
    }
    text
}

fn subscribers_table(subscribers: &[SubscriberView]) -> Table {
    let mut table = Table::new(&["CLIENT", "PATTERN", "STATE", "REASON"]);
    for subscriber in subscribers {
        table.row([
            subscriber.client.clone(),
            short(&subscriber.pattern),
            subscriber.state.clone(),
            subscriber.reason.clone(),
        ]);
    }
    table
}

pub(crate) async fn links(args: ListArgs) -> Result<Exit, CliError> {
    let mut admin = Servers::of(&args.client)?.admin().await?;
    let links = all(async |page_token| {
        let reply = admin.list_links(ListLinksRequest { page_size: 0, page_token }).await?.into_inner();
        Ok((reply.links, reply.next_page_token))
    })
    .await?;
    let views: Vec<LinkView> = links.into_iter().map(LinkView::from).collect();
    print(args.output, &views, links_table)
}

fn links_table(links: &[LinkView]) -> Table {
    let mut table = Table::new(&[
        "PEER",
        "KIND",
        "DIR",
        "ADDRESS",
        "STATE",
        ">RTT",
        ">LOSS",
        ">IN",
        ">OUT",
        ">RECONNECTS",
        ">DROPPED",
        "REASON",
    ]);
    for link in links {
        table.row([
            link.peer.clone(),
            link.peer_kind.clone(),
            link.direction.clone(),
            link.address.clone(),
            link.state.clone(),
            if link.rtt_ms > 0.0 { format!("{:.1} ms", link.rtt_ms) } else { "-".into() },
            format!("{:.1} %", link.loss * 100.0),
            format!("{}/s", size(link.bytes_per_s_in)),
            format!("{}/s", size(link.bytes_per_s_out)),
            link.reconnects.to_string(),
            link.one_way_dropped.to_string(),
            link.reason.clone(),
        ]);
    }
    table
}

/// All pages of a list; `page` gives the one that follows a token, and the token of the next.
pub(super) async fn all<T>(
    mut page: impl AsyncFnMut(String) -> Result<(Vec<T>, String), tonic::Status>,
) -> Result<Vec<T>, CliError> {
    let (mut all, mut token) = (Vec::new(), String::new());
    loop {
        let (items, next) = page(token).await?;
        all.extend(items);
        if next.is_empty() {
            return Ok(all);
        }
        token = next;
    }
}

/// The topics, or one.
async fn all_topics(args: &ListArgs, topic: &str) -> Result<Vec<TopicStatus>, CliError> {
    let mut admin = Servers::of(&args.client)?.admin().await?;
    all(async |page_token| {
        let request = ListTopicsRequest { topic: topic.to_string(), page_size: 0, page_token };
        let reply = admin.list_topics(request).await?.into_inner();
        Ok((reply.topics, reply.next_page_token))
    })
    .await
}

/// The groups, or one, each in one piece.
async fn all_groups(args: &ListArgs, group: &str) -> Result<Vec<Group>, CliError> {
    let mut admin = Servers::of(&args.client)?.admin().await?;
    let parts = all(async |page_token| {
        let request = ListGroupsRequest { group: group.to_string(), page_size: 0, page_token };
        let reply = admin.list_groups(request).await?.into_inner();
        Ok((reply.groups, reply.next_page_token))
    })
    .await?;
    let mut groups: Vec<Group> = Vec::new();
    for part in parts {
        match groups.last_mut() {
            Some(last) if last.name == part.name => last.positions.extend(part.positions),
            _ => groups.push(part),
        }
    }
    Ok(groups)
}

pub(crate) async fn topics(args: ListArgs) -> Result<Exit, CliError> {
    let topics = all_topics(&args, "").await?;
    let views: Vec<TopicView> = topics.into_iter().map(TopicView::from).collect();
    print(args.output, &views, topics_table)
}

fn topics_table(topics: &[TopicView]) -> Table {
    let mut table =
        Table::new(&["TOPIC", "ORIGIN", "STATE", ">END", ">ORIGIN END", ">LAG", ">LAG BYTES", ">LAG TIME", "REASON"]);
    for topic in topics {
        // Without a way to the origin the lag is that of its last mark: there may be more by now.
        let lag = |text: String| match topic.state.as_str() {
            "down" if topic.lag_messages > 0 => format!("≥ {text}"),
            _ if !topic.lag_known => "?".to_owned(),
            "stalled" => format!("≥ {text}"),
            _ => text,
        };
        table.row([
            short(&topic.topic),
            topic.origin.clone(),
            topic.state.clone(),
            topic.end().to_string(),
            topic.origin_end().map_or_else(|| "?".into(), |end| end.to_string()),
            lag(topic.lag_messages.to_string()),
            lag(size(topic.lag_bytes as f64)),
            lag(format!("{:.1} s", topic.lag_s)),
            topic.reason.clone(),
        ]);
    }
    table
}

pub(crate) async fn topic(args: NamedListArgs) -> Result<Exit, CliError> {
    let topics = all_topics(&args.list, &args.name).await?;
    if topics.is_empty() {
        return Err(CliError::failed(format!(
            "this site holds no topic {:?}; 'seaway topic ls' lists those that it holds",
            args.name
        )));
    }
    let views: Vec<TopicView> = topics.into_iter().map(TopicView::from).collect();
    if args.list.output == Output::Table {
        output::bytes(settings_text(&views).as_bytes())?;
    }
    print(args.list.output, &views, |topics| {
        let mut table = Table::new(&[
            "ORIGIN",
            ">QUEUE",
            "BEGIN",
            "END",
            "ORIGIN'S END",
            ">HOLES",
            ">FORKS",
            "CHAIN",
            "VERIFIED TO",
        ]);
        for topic in topics {
            for queue in &topic.queues {
                table.row([
                    topic.origin.clone(),
                    if queue.queue == 0 { "0 (control)".into() } else { queue.queue.to_string() },
                    queue.begin.clone().unwrap_or_default(),
                    queue.end.clone().unwrap_or_default(),
                    queue.origin_end.clone().unwrap_or_else(|| "?".into()),
                    queue.holes_total.to_string(),
                    queue.forks.len().to_string(),
                    queue.chain.clone(),
                    queue.verified.clone().unwrap_or_else(|| "-".into()),
                ]);
            }
        }
        table
    })
}

/// What holds of a topic, for each origin, and where it comes from.
fn settings_text(topics: &[TopicView]) -> String {
    let mut text = String::new();
    let mut table = Table::new(&["ORIGIN", "SETTING", "VALUE", "FROM"]);
    for topic in topics {
        if let Some(deleted) = &topic.deleted {
            let waits = if deleted.unconfirmed.is_empty() { "" } else { "; not yet known to: " };
            text.push_str(&format!(
                "deleted at {} on {}{waits}{}\n",
                topic.origin,
                deleted.time,
                deleted.unconfirmed.join(", ")
            ));
        }
        for refused in &topic.refused {
            text.push_str(&format!("not taken by {refused}\n"));
        }
        for setting in &topic.settings {
            let (name, value) = (setting.name.clone(), setting.value.clone());
            table.row([topic.origin.clone(), name, value, setting.source.clone()]);
        }
    }
    text.push_str(&table.render());
    text.push('\n');
    text
}

pub(crate) async fn groups(args: ListArgs) -> Result<Exit, CliError> {
    let groups = all_groups(&args, "").await?;
    let views: Vec<GroupView> = groups.into_iter().map(GroupView::from).collect();
    print(args.output, &views, |groups| {
        let mut table = Table::new(&["GROUP", "PATTERN", ">MEMBERS", ">LAG", ">UNCONFIRMED", "STATE", "REASON"]);
        for group in groups {
            table.row([
                group.name.clone(),
                short(&group.pattern),
                group.members.to_string(),
                group.lag_messages.to_string(),
                group.unconfirmed.to_string(),
                group.state.clone(),
                group.reason.clone(),
            ]);
        }
        table
    })
}

pub(crate) async fn group(args: NamedListArgs) -> Result<Exit, CliError> {
    let groups = all_groups(&args.list, &args.name).await?;
    if groups.is_empty() {
        return Err(CliError::failed(format!(
            "this site has no group {:?}; 'seaway group ls' lists those that it has",
            args.name
        )));
    }
    let views: Vec<GroupView> = groups.into_iter().map(GroupView::from).collect();
    print(args.list.output, &views, |groups| {
        let mut table = Table::new(&["POSITION", ">RANGES ABOVE", ">END"]);
        for position in groups.iter().flat_map(|group| &group.positions) {
            table.row([position.position.clone(), position.ranges_above.to_string(), position.end_offset.to_string()]);
        }
        table
    })
}

pub(crate) async fn tokens(args: ListArgs) -> Result<Exit, CliError> {
    let mut admin = Servers::of(&args.client)?.admin().await?;
    let tokens = all(async |page_token| {
        let reply = admin.list_tokens(ListTokensRequest { page_size: 0, page_token }).await?.into_inner();
        Ok((reply.tokens, reply.next_page_token))
    })
    .await?;
    let views: Vec<TokenView> = tokens.into_iter().map(TokenView::from).collect();
    print(args.output, &views, |tokens| {
        let mut table = Table::new(&["TOKEN", "PUBLISH", "SUBSCRIBE", "ADMIN", "EXPIRES", "FROM"]);
        for token in tokens {
            table.row([
                token.name.clone(),
                token.publish.join(" "),
                token.subscribe.join(" "),
                if token.admin { "yes" } else { "no" }.to_string(),
                token.expires.clone().unwrap_or_else(|| "never".into()),
                token.from.clone(),
            ]);
        }
        table
    })
}

fn print<V: serde::Serialize>(how: Output, views: &[V], table: impl Fn(&[V]) -> Table) -> Result<Exit, CliError> {
    match how {
        Output::Json => output::json(&views)?,
        Output::Table => output::bytes(table(views).render().as_bytes())?,
    }
    Ok(Exit::Done)
}
