//! `seaway site ls` and `seaway site remove`.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Serialize;

use super::{
    CliError, Exit,
    args::{ListArgs, Output, SiteRemoveArgs},
    client::Servers,
    output::{self, Table, count, short, size},
    show::views::{HeldView, place},
};
use crate::{
    api::{self, ListSitesRequest, RemoveSiteRequest, SiteInfo},
    config::values::time_text,
};

/// A site.
#[derive(Debug, Default, Serialize)]
struct SiteView {
    site: String,
    nodes: Vec<String>,
    reachable: bool,
    next_hop: String,
    cost: u32,
    through_no_transit: bool,
    held: Vec<HeldView>,
    held_back: Option<HeldBackView>,
    removed: Option<String>,
    removed_by: String,
}

/// What is kept for a site beyond retention.
#[derive(Debug, Default, Serialize)]
pub(crate) struct HeldBackView {
    pub(crate) site: String,
    pub(crate) bytes: u64,
    pub(crate) behind_bytes: u64,
    pub(crate) oldest: Option<String>,
    pub(crate) oldest_age_s: Option<u64>,
    pub(crate) last_heard: Option<String>,
    pub(crate) last_heard_age_s: Option<u64>,
    pub(crate) suffices_s: Option<u64>,
    pub(crate) topics: Vec<TopicView>,
    pub(crate) gaps: Vec<GapView>,
    pub(crate) topics_total: u32,
    pub(crate) gaps_total: u32,
}

#[derive(Debug, Default, Serialize)]
pub(crate) struct TopicView {
    topic: String,
    bytes: u64,
    behind_bytes: u64,
    oldest: Option<String>,
}

#[derive(Debug, Default, Serialize)]
pub(crate) struct GapView {
    topic: String,
    queue: u32,
    from: Option<String>,
    to: Option<String>,
    messages: u64,
    bytes: u64,
    since: Option<String>,
    last: Option<String>,
}

/// Hold-back as a whole.
#[derive(Debug, Default, Serialize)]
pub(crate) struct HoldBackView {
    bytes: u64,
    bytes_max: Option<u64>,
    bytes_per_s: Option<f64>,
    suffices_s: Option<u64>,
    sites: Vec<HeldBackView>,
    refused: Vec<RefusedView>,
}

#[derive(Debug, Default, Serialize)]
pub(crate) struct RefusedView {
    topic: String,
    why: String,
}

impl From<api::HoldBackStatus> for HoldBackView {
    fn from(from: api::HoldBackStatus) -> Self {
        let refused = |r: api::RefusedTopic| RefusedView { topic: r.topic, why: r.why };
        Self {
            bytes: from.bytes,
            bytes_max: from.bytes_max,
            bytes_per_s: from.bytes_per_s,
            suffices_s: from.suffices_s,
            sites: from.sites.into_iter().map(Into::into).collect(),
            refused: from.refused.into_iter().map(refused).collect(),
        }
    }
}

impl HoldBackView {
    /// For `seaway status`: one line for the whole, one for each site that something is kept for, one for each topic refused.
    pub(crate) fn text(&self) -> String {
        if self.sites.is_empty() {
            return String::new();
        }
        let max = self.bytes_max.map_or_else(|| "no bound".into(), |max| format!("of {}", size(max as f64)));
        let suffices = match (self.suffices_s, self.bytes_per_s) {
            (Some(seconds), Some(rate)) => {
                format!("; at {}/s it suffices for an outage of {} beyond retention", size(rate), long(seconds))
            }
            (None, Some(_)) => "; nothing is published that it would have to keep".to_string(),
            _ => String::new(),
        };
        let mut text = format!("hold-back: {} {max}{suffices}\n", size(self.bytes as f64));
        for site in self.sites.iter().filter(|site| site.bytes > 0 || site.gaps_total > 0) {
            let heard = site.last_heard_age_s.map_or_else(|| "never".into(), |s| format!("{} ago", long(s)));
            let oldest = site.oldest_age_s.map_or_else(String::new, |s| format!(", the oldest stored {} ago", long(s)));
            let lost = if site.gaps_total > 0 { ", more was given up ('seaway site ls' says what)" } else { "" };
            let left = site.suffices_s.map_or_else(String::new, |s| format!("; suffices for {} more", long(s)));
            let (name, bytes) = (&site.site, size(site.bytes as f64));
            text.push_str(&format!("  for {name}, last heard {heard}: {bytes}{oldest}{lost}{left}\n"));
        }
        for refused in &self.refused {
            text.push_str(&format!("  {} is refused: {}\n", short(&refused.topic), refused.why));
        }
        text
    }
}

fn now_us() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_micros()).unwrap_or(u64::MAX)
}

fn time(us: u64) -> Option<String> {
    (us > 0).then(|| time_text(us))
}

fn age_s(us: u64) -> Option<u64> {
    (us > 0).then(|| now_us().saturating_sub(us) / 1_000_000)
}

/// A duration in seconds, for people: its two greatest units.
pub(crate) fn long(seconds: u64) -> String {
    let text = humantime::format_duration(Duration::from_secs(seconds)).to_string();
    text.split(' ').take(2).collect::<Vec<_>>().join(" ")
}

fn ago(seconds: Option<u64>) -> String {
    seconds.map_or_else(|| "-".into(), long)
}

impl From<api::SiteHoldBack> for HeldBackView {
    fn from(from: api::SiteHoldBack) -> Self {
        let topic = |t: api::TopicHoldBack| TopicView {
            topic: t.topic,
            bytes: t.bytes,
            behind_bytes: t.behind_bytes,
            oldest: time(t.oldest_us),
        };
        let gap = |g: api::SiteGap| GapView {
            topic: g.topic,
            queue: g.queue,
            from: place(g.from),
            to: place(g.to),
            messages: g.messages,
            bytes: g.bytes,
            since: time(g.since_us),
            last: time(g.last_us),
        };
        Self {
            site: from.site,
            bytes: from.bytes,
            behind_bytes: from.behind_bytes,
            oldest: time(from.oldest_us),
            oldest_age_s: age_s(from.oldest_us),
            last_heard: time(from.last_heard_us),
            last_heard_age_s: age_s(from.last_heard_us),
            suffices_s: from.suffices_s,
            topics: from.topics.into_iter().map(topic).collect(),
            gaps: from.gaps.into_iter().map(gap).collect(),
            topics_total: from.topics_total,
            gaps_total: from.gaps_total,
        }
    }
}

impl From<SiteInfo> for SiteView {
    fn from(from: SiteInfo) -> Self {
        Self {
            site: from.site,
            nodes: from.nodes,
            reachable: from.reachable,
            next_hop: from.next_hop,
            cost: from.cost,
            through_no_transit: from.through_no_transit,
            held: from.held.into_iter().map(Into::into).collect(),
            held_back: from.held_back.map(Into::into),
            removed: time(from.removed_us),
            removed_by: from.removed_by,
        }
    }
}

/// The sites, each in one piece.
async fn all_sites(args: &ListArgs) -> Result<Vec<SiteInfo>, CliError> {
    let mut admin = Servers::of(&args.client)?.admin().await?;
    let (mut sites, mut page_token): (Vec<SiteInfo>, String) = (Vec::new(), String::new());
    loop {
        let reply = admin.list_sites(ListSitesRequest { page_size: 0, page_token }).await?.into_inner();
        for part in reply.sites {
            match sites.last_mut() {
                Some(last) if last.site == part.site => last.held.extend(part.held),
                _ => sites.push(part),
            }
        }
        if reply.next_page_token.is_empty() {
            return Ok(sites);
        }
        page_token = reply.next_page_token;
    }
}

pub(crate) async fn ls(args: ListArgs) -> Result<Exit, CliError> {
    let views: Vec<SiteView> = all_sites(&args).await?.into_iter().map(SiteView::from).collect();
    match args.output {
        Output::Json => output::json(&views)?,
        Output::Table => output::bytes(tables(&views).as_bytes())?,
    }
    Ok(Exit::Done)
}

fn tables(views: &[SiteView]) -> String {
    let mut text = sites_table(views).render();
    let (mut pins, mut gaps) = (Table::new(&["SITE", "TOPIC", ">PINS", ">BEHIND", "OLDEST PINNED"]), gaps_table());
    let mut held = Table::new(&["SITE", "HOLDS OF OURS", ">QUEUE", "BELOW", ">LAG", "REGISTERED", "VERIFIED TO"]);
    for view in views {
        if let Some(kept) = &view.held_back {
            for topic in &kept.topics {
                let oldest = topic.oldest.clone().unwrap_or_else(|| "-".into());
                let (bytes, behind) = (size(topic.bytes as f64), size(topic.behind_bytes as f64));
                pins.row([view.site.clone(), short(&topic.topic), bytes, behind, oldest]);
            }
            let more = usize::try_from(kept.topics_total).unwrap_or(0).saturating_sub(kept.topics.len());
            if more > 0 {
                let rest = format!("and {} more", count(more as u64, "topic"));
                pins.row([view.site.clone(), rest, "-".into(), "-".into(), "-".into()]);
            }
            add_gaps(&mut gaps, &view.site, kept);
        }
        for of in &view.held {
            held.row([
                view.site.clone(),
                short(&of.topic),
                of.queue.to_string(),
                of.below.clone().unwrap_or_default(),
                of.lag_messages.to_string(),
                if of.registered { "yes" } else { "no" }.to_string(),
                verified(of),
            ]);
        }
    }
    for (title, table) in [
        ("kept beyond retention, or missing there\n", pins),
        ("given up\n", gaps),
        ("what each states to hold\n", held),
    ] {
        if !table.is_empty() {
            text.push_str(&format!("\n{title}{}", table.render()));
        }
    }
    text
}

/// Up to where a site's copy is proven to hold the same bytes.
fn verified(held: &HeldView) -> String {
    let to = held.verified_to.clone().unwrap_or_else(|| "-".into());
    if held.differs { format!("{to}, DIFFERS above") } else { to }
}

fn sites_table(views: &[SiteView]) -> Table {
    let mut table = Table::new(&[
        "SITE",
        "NODES",
        "REACHABLE",
        "BY",
        ">COST",
        "COUNTS",
        ">PINS",
        ">BEHIND",
        ">OLDEST PINNED",
        ">LAST HEARD",
        ">SUFFICES",
    ]);
    let word = |yes| if yes { "yes" } else { "no" };
    for view in views {
        let head = [
            view.site.clone(),
            view.nodes.join(", "),
            match &view.removed {
                Some(at) => format!("removed by {} at {at}", view.removed_by),
                None => word(view.reachable).to_string(),
            },
            match view.through_no_transit {
                true => format!("{}, through a drained node", view.next_hop),
                false => view.next_hop.clone(),
            },
            view.cost.to_string(),
            word(view.held_back.is_some()).to_string(),
        ];
        let rest = match &view.held_back {
            None => std::array::from_fn(|_| "-".to_string()),
            Some(kept) => [
                size(kept.bytes as f64),
                size(kept.behind_bytes as f64),
                ago(kept.oldest_age_s),
                kept.last_heard_age_s.map_or_else(|| "never".into(), |s| format!("{} ago", long(s))),
                ago(kept.suffices_s),
            ],
        };
        table.row(head.into_iter().chain(rest));
    }
    table
}

fn gaps_table() -> Table {
    Table::new(&["SITE", "TOPIC", ">QUEUE", "FROM", "TO", ">MESSAGES", ">BYTES", "LAST"])
}

fn add_gaps(table: &mut Table, site: &str, kept: &HeldBackView) {
    for gap in &kept.gaps {
        table.row([
            site.to_string(),
            short(&gap.topic),
            gap.queue.to_string(),
            gap.from.clone().unwrap_or_default(),
            gap.to.clone().unwrap_or_default(),
            gap.messages.to_string(),
            size(gap.bytes as f64),
            gap.last.clone().unwrap_or_default(),
        ]);
    }
}

/// What goes with a site, and whether it is gone.
#[derive(Debug, Serialize)]
struct RemovedView {
    site: String,
    removed: bool,
    reachable: bool,
    only: Vec<OnlyView>,
    only_total: u32,
    held_back: Option<HeldBackView>,
}

/// What only that site is known to hold.
#[derive(Debug, Serialize)]
struct OnlyView {
    topic: String,
    origin: String,
    queue: u32,
    messages: u64,
    why: String,
}

impl RemovedView {
    fn new(site: &str, removed: bool, told: api::RemoveSiteReply) -> Self {
        let only = |o: api::OnlyThere| OnlyView {
            topic: o.topic,
            origin: o.origin,
            queue: o.queue,
            messages: o.messages,
            why: o.why,
        };
        Self {
            site: site.to_owned(),
            removed,
            reachable: told.reachable,
            only: told.only.into_iter().map(only).collect(),
            only_total: told.only_total,
            held_back: told.held_back.map(Into::into),
        }
    }
}

pub(crate) async fn remove(args: SiteRemoveArgs) -> Result<Exit, CliError> {
    let mut admin = Servers::of(&args.list.client)?.admin().await?;
    let (site, how) = (args.site, args.list.output);
    let mut ask = async |yes| admin.remove_site(RemoveSiteRequest { site: site.clone(), yes }).await;
    let told = ask(false).await?.into_inner();
    if told.removed {
        let text = format!("site {site} is removed already");
        output::told(how, &RemovedView::new(&site, true, told), &text)?;
        return Ok(Exit::Done);
    }
    if how == Output::Table {
        output::bytes(what_goes(&site, &told).as_bytes())?;
    }
    if !args.yes {
        if how == Output::Json {
            output::json(&RemovedView::new(&site, false, told))?;
        }
        return Err(CliError::usage(format!(
            "nothing is done yet: removing is for ever, and the name {site} is never used again; run it again with --yes"
        )));
    }
    ask(true).await?;
    let text =
        format!("site {site} is removed: nothing waits for it any more, and its certificate is refused on all links");
    output::told(how, &RemovedView::new(&site, true, told), &text)?;
    Ok(Exit::Done)
}

fn what_goes(site: &str, told: &api::RemoveSiteReply) -> String {
    let mut text = String::new();
    if told.reachable {
        text.push_str(&format!("site {site} can be reached at this moment\n"));
    }
    if let Some(kept) = &told.held_back {
        text.push_str(&format!("{} kept for it are left to retention\n", size(kept.bytes as f64)));
    }
    if told.only.is_empty() {
        text.push_str("nothing is known that only this site holds\n");
        return text;
    }
    text.push_str(&format!("only site {site} is known to hold:\n"));
    let mut table = Table::new(&["TOPIC", "ORIGIN", ">QUEUE", ">MESSAGES", "WHAT"]);
    for only in &told.only {
        table.row([
            short(&only.topic),
            only.origin.clone(),
            only.queue.to_string(),
            only.messages.to_string(),
            only.why.clone(),
        ]);
    }
    text.push_str(&table.render());
    let more = usize::try_from(told.only_total).unwrap_or(0).saturating_sub(told.only.len());
    if more > 0 {
        text.push_str(&format!("and of {} more\n", count(more as u64, "queue")));
    }
    text
}
