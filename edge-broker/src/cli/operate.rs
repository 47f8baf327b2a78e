//! Commands for operating a running node: draining, pausing links, reading its configuration anew, log levels.

use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::json;

use super::{
    CliError, Exit,
    args::{DrainArgs, LevelArgs, ListArgs, Output, PeerArgs},
    client::Servers,
    output::{self, Table, count},
};
use crate::api::{
    DrainRequest, GetLogLevelsRequest, LogLevels, PauseLinkRequest, ReloadConfigRequest, ResumeLinkRequest,
    SetLogLevelRequest, StatusRequest,
};

/// How often a drain that is waited for looks again.
const LOOK_EVERY: Duration = Duration::from_millis(200);

pub(crate) async fn drain(args: DrainArgs) -> Result<Exit, CliError> {
    let mut admin = Servers::of(&args.list.client)?.admin().await?;
    let how = args.list.output;
    let reply = admin.drain(DrainRequest { undo: args.undo }).await?.into_inner();
    let view = |waiting: u64| json!({"drained": !args.undo, "drained_before": reply.drained_before, "receipts_waiting": waiting});
    if args.undo {
        let text = if reply.drained_before { "the node is in use again" } else { "the node was not drained" };
        output::told(how, &view(reply.receipts_waiting), text)?;
        return Ok(Exit::Done);
    }
    let until = args.wait.map(|wait| Instant::now() + wait);
    let mut waiting = reply.receipts_waiting;
    while waiting > 0 && until.is_some_and(|until| Instant::now() < until) {
        tokio::time::sleep(LOOK_EVERY).await;
        // Only looks: somebody may take the node into use again meanwhile, and is not to be undone.
        let status = admin.status(StatusRequest {}).await?.into_inner();
        if !status.drained {
            return Err(CliError::failed(format!(
                "the node is in use again: somebody undid this while {} for other sites",
                waits(waiting)
            )));
        }
        waiting = status.receipts_waiting;
    }
    if waiting == 0 {
        let text = "the node is drained: it takes no new messages, and none waits for other sites";
        output::told(how, &view(0), text)?;
        return Ok(Exit::Done);
    }
    let text = format!("the node is drained: it takes no new messages; {} still for other sites", waits(waiting));
    output::told(how, &view(waiting), &text)?;
    Ok(if until.is_some() { Exit::TimedOut } else { Exit::Done })
}

fn waits(messages: u64) -> String {
    format!("{} wait{}", count(messages, "message"), if messages == 1 { "s" } else { "" })
}

pub(crate) async fn pause_link(args: PeerArgs) -> Result<Exit, CliError> {
    let mut admin = Servers::of(&args.list.client)?.admin().await?;
    admin.pause_link(PauseLinkRequest { peer: args.peer.clone() }).await?;
    let text = format!("the link with {} is paused until it is resumed, or the node restarts", args.peer);
    output::told(args.list.output, &json!({"peer": args.peer, "paused": true}), &text)?;
    Ok(Exit::Done)
}

pub(crate) async fn resume_link(args: PeerArgs) -> Result<Exit, CliError> {
    let mut admin = Servers::of(&args.list.client)?.admin().await?;
    let reply = admin.resume_link(ResumeLinkRequest { peer: args.peer.clone() }).await?.into_inner();
    let what = if reply.was_paused { "may come up again" } else { "was not paused here" };
    let view = json!({"peer": args.peer, "paused": false, "was_paused": reply.was_paused});
    output::told(args.list.output, &view, &format!("the link with {} {what}", args.peer))?;
    Ok(Exit::Done)
}

#[derive(Serialize)]
struct ReloadView {
    applied: Vec<String>,
    needs_restart: Vec<String>,
}

pub(crate) async fn reload(args: ListArgs) -> Result<Exit, CliError> {
    let mut admin = Servers::of(&args.client)?.admin().await?;
    let reply = admin.reload_config(ReloadConfigRequest {}).await?.into_inner();
    let view = ReloadView { applied: reply.applied, needs_restart: reply.needs_restart };
    match args.output {
        Output::Json => output::json(&view)?,
        Output::Table => {
            output::line("certificates, keys, authorities and tokens were read anew")?;
            for key in &view.applied {
                output::line(&format!("in use now: {key}"))?;
            }
            for key in &view.needs_restart {
                output::line(&format!("needs a restart: {key}"))?;
            }
        }
    }
    Ok(if view.needs_restart.is_empty() { Exit::Done } else { Exit::Degraded })
}

#[derive(Serialize)]
struct LevelsView {
    configured: String,
    raised: Vec<LevelView>,
}

#[derive(Serialize)]
struct LevelView {
    target: String,
    level: String,
    left_s: u64,
    by: String,
}

pub(crate) async fn level(args: LevelArgs) -> Result<Exit, CliError> {
    let request = match (&args.level, &args.reset) {
        (Some(text), _) => {
            let (target, level) = text.split_once('=').unwrap_or(("", text));
            let for_ms = u64::try_from(args.time.as_millis()).unwrap_or(u64::MAX);
            if level.is_empty() {
                return Err(CliError::usage("write it as LEVEL or TARGET=LEVEL, such as seaway_relay::link=debug"));
            }
            Some(SetLogLevelRequest { target: target.into(), level: level.into(), for_ms })
        }
        (None, Some(target)) => Some(SetLogLevelRequest { target: target.clone(), ..SetLogLevelRequest::default() }),
        (None, None) => None,
    };
    let mut admin = Servers::of(&args.list.client)?.admin().await?;
    let levels = match request {
        Some(request) => admin.set_log_level(request).await?,
        None => admin.get_log_levels(GetLogLevelsRequest {}).await?,
    };
    show_levels(levels.into_inner(), args.list.output)
}

fn show_levels(levels: LogLevels, how: Output) -> Result<Exit, CliError> {
    let raised = levels.raised.into_iter().map(|l| LevelView {
        target: l.target,
        level: l.level,
        left_s: l.left_ms.div_ceil(1000),
        by: l.by,
    });
    let view = LevelsView { configured: levels.configured, raised: raised.collect() };
    match how {
        Output::Json => output::json(&view)?,
        Output::Table => {
            output::line(&format!("configured: {}", view.configured))?;
            let mut table = Table::new(&["TARGET", "LEVEL", ">LEFT", "BY"]);
            for one in &view.raised {
                let target = if one.target.is_empty() { "(all)" } else { &one.target };
                let left = humantime::format_duration(Duration::from_secs(one.left_s)).to_string();
                table.row([target.to_string(), one.level.clone(), left, one.by.clone()]);
            }
            if !table.is_empty() {
                output::bytes(table.render().as_bytes())?;
            }
        }
    }
    Ok(Exit::Done)
}
