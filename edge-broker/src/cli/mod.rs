//! The command line: one binary, a noun and a verb.
//!
//! [`main`] parses, runs one command and answers with an exit code: 0 done, 1 failed, 2 wrong usage, 3 done but
//! degraded, 4 timed out, 5 refused (rights, limits). What a command yields goes to standard output, everything about
//! it to standard error; an error is one sentence that says what to do.

mod args;
mod bench;
mod ca;
mod client;
mod config;
mod exit;
mod federation;
mod json;
mod limits;
mod log;
mod memory;
mod metrics;
mod node;
mod operate;
mod output;
mod publish;
mod queues;
mod service;
mod show;
mod sites;
mod steer;
mod subscribe;
mod topics;

use std::process::ExitCode;

use clap::{CommandFactory, Parser, error::ErrorKind};

use args::{Cli, Command};
pub use exit::{CliError, Exit};
pub(crate) use node::log_filter;

/// Runs the command that the process was started with.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => {
            let asked = matches!(e.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
            let _ = e.print();
            return ExitCode::from(if asked { Exit::Done } else { Exit::Usage });
        }
    };
    match run(cli.command) {
        Ok(exit) => ExitCode::from(exit),
        Err(e) => {
            if !e.is_broken_pipe() {
                output::error(&e.to_string());
            }
            ExitCode::from(e.exit())
        }
    }
}

fn run(command: Command) -> Result<Exit, CliError> {
    match command {
        Command::Edge(args) => node::run(crate::config::settings::Kind::Edge, &args),
        Command::Relay(args) => node::run(crate::config::settings::Kind::Relay, &args),
        Command::Pub(args) => client::block_on(publish::run(args)),
        Command::Sub(args) => client::block_on(subscribe::run(args)),
        Command::Status(args) => client::block_on(show::status(args)),
        Command::Link(args::LinkCommand::Ls(args)) | Command::Links(args) => client::block_on(show::links(args)),
        Command::Link(args::LinkCommand::Pause(args)) => client::block_on(operate::pause_link(args)),
        Command::Link(args::LinkCommand::Resume(args)) => client::block_on(operate::resume_link(args)),
        Command::Limit(limits::LimitCommand::Ls(args)) | Command::Limits(args) => client::block_on(limits::list(args)),
        Command::Limit(limits::LimitCommand::Set(args)) => client::block_on(limits::set(args)),
        Command::Limit(limits::LimitCommand::Rm(args)) => client::block_on(limits::remove(args)),
        Command::Queues(args) => client::block_on(queues::list(args)),
        Command::Drain(args) => client::block_on(operate::drain(args)),
        Command::Debug(args::DebugCommand::Level(args)) => client::block_on(operate::level(args)),
        Command::Topic(args::TopicCommand::Ls(args)) | Command::Topics(args) => client::block_on(show::topics(args)),
        Command::Topic(args::TopicCommand::Show(args)) => client::block_on(show::topic(args)),
        Command::Topic(args::TopicCommand::Create(args)) => client::block_on(topics::create(args)),
        Command::Topic(args::TopicCommand::Set(args)) => client::block_on(topics::set(args)),
        Command::Topic(args::TopicCommand::Trim(args)) => client::block_on(topics::trim(args)),
        Command::Topic(args::TopicCommand::Skip(args)) => client::block_on(topics::skip(args)),
        Command::Topic(args::TopicCommand::Rm(args)) => client::block_on(topics::remove(args)),
        Command::Group(args::GroupCommand::Ls(args)) | Command::Groups(args) => client::block_on(show::groups(args)),
        Command::Group(args::GroupCommand::Show(args)) => client::block_on(show::group(args)),
        Command::Group(args::GroupCommand::Rm(args)) => client::block_on(steer::remove_group(args)),
        Command::Site(args::SiteCommand::Ls(args)) | Command::Sites(args) => client::block_on(sites::ls(args)),
        Command::Site(args::SiteCommand::Remove(args)) => client::block_on(sites::remove(args)),
        Command::Find(args) => client::block_on(federation::find(args)),
        Command::Topology(args) => client::block_on(federation::topology(args)),
        Command::Route(args::RouteCommand::Explain(args)) => client::block_on(federation::explain(args)),
        Command::Token(args::TokenCommand::Ls(args)) | Command::Tokens(args) => client::block_on(show::tokens(args)),
        Command::Token(args::TokenCommand::Create(args)) => client::block_on(steer::create_token(args)),
        Command::Token(args::TokenCommand::Revoke(args)) => client::block_on(steer::revoke_token(args)),
        Command::Ca(command) => ca::run(command),
        Command::Config(command) => config::run(command),
        Command::Log(command) => log::run(command),
        Command::Metrics(args::MetricsCommand::Ls { output }) => metrics::ls(output),
        Command::Bench(command) => bench::run(command),
        Command::Completions { shell } => {
            let mut text = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "seaway", &mut text);
            output::bytes(&text).map(|()| Exit::Done)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }
}
