//! `seaway queues`.

use serde::Serialize;

use super::{
    CliError, Exit,
    args::{ListArgs, Output},
    client::Servers,
    output::{self, Table, size},
    show::all,
};
use crate::api::{ListQueuesRequest, QueueStatus};

#[derive(Debug, Serialize)]
struct QueueView {
    name: String,
    /// The peer of a link's; empty where the node has one.
    of: String,
    unit: &'static str,
    /// `null`: not known.
    used: Option<u64>,
    highest: Option<u64>,
    bound: u64,
    at_bound: String,
}

impl From<QueueStatus> for QueueView {
    fn from(from: QueueStatus) -> Self {
        Self {
            name: from.name.trim_end_matches(" (number)").to_owned(),
            of: from.of,
            unit: if from.pieces { "pieces" } else { "bytes" },
            used: (!from.unseen).then_some(from.bytes),
            highest: from.highest,
            bound: from.bytes_max,
            at_bound: from.at_bound,
        }
    }
}

#[allow(clippy::cast_precision_loss, reason = "for people")]
pub(crate) async fn list(args: ListArgs) -> Result<Exit, CliError> {
    let mut admin = Servers::of(&args.client)?.admin().await?;
    let queues = all(async |page_token| {
        let reply = admin.list_queues(ListQueuesRequest { page_size: 0, page_token }).await?.into_inner();
        Ok((reply.queues, reply.next_page_token))
    })
    .await?;
    let views: Vec<QueueView> = queues.into_iter().map(QueueView::from).collect();
    if args.output == Output::Json {
        output::json(&views)?;
        return Ok(Exit::Done);
    }
    let mut table = Table::new(&["QUEUE", "OF", ">NOW", ">HIGHEST", ">BOUND", "AT THE BOUND"]);
    for view in &views {
        let shown = |amount: u64| if view.unit == "bytes" { size(amount as f64) } else { amount.to_string() };
        let known = |amount: Option<u64>| amount.map_or_else(|| "?".to_owned(), shown);
        table.row([
            view.name.clone(),
            view.of.clone(),
            known(view.used),
            known(view.highest),
            shown(view.bound),
            view.at_bound.clone(),
        ]);
    }
    output::bytes(table.render().as_bytes())?;
    Ok(Exit::Done)
}
