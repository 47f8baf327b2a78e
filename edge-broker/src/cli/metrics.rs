//! `seaway metrics`: the documented list, from the table that the exposition is made of.

use serde::Serialize;

use super::{
    CliError, Exit,
    args::Output,
    output::{self, Table},
};
use crate::metrics::table::ALL;

#[derive(Serialize)]
struct MetricView {
    name: &'static str,
    r#type: &'static str,
    labels: &'static [&'static str],
    help: &'static str,
}

/// Lists every metric.
pub(crate) fn ls(how: Output) -> Result<Exit, CliError> {
    let views: Vec<_> = ALL
        .iter()
        .map(|m| MetricView { name: m.name, r#type: m.kind.name(), labels: m.labels, help: m.help })
        .collect();
    match how {
        Output::Json => output::json(&views)?,
        Output::Table => {
            let mut table = Table::new(&["METRIC", "TYPE", "LABELS", "WHAT"]);
            for view in views {
                table.row([view.name.into(), view.r#type.into(), view.labels.join(","), view.help.into()]);
            }
            output::bytes(table.render().as_bytes())?;
        }
    }
    Ok(Exit::Done)
}
