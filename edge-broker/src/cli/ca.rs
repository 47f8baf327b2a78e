//! `seaway ca`: a private authority.

use std::path::Path;

use seaway_federation_proto::ids::NodeName;
use seaway_relay::{
    ca::{AUTHORITY_LIFETIME, Authority, CERTIFICATE_LIFETIME, CaError, Holder, Issued, Request},
    transport::identity::Identity,
};

use super::{
    CliError, Exit,
    args::{CaCommand, IssueArgs},
    output,
};

/// Runs one of its commands.
pub(crate) fn run(command: CaCommand) -> Result<Exit, CliError> {
    match command {
        CaCommand::Init { dir, federation, lifetime } => {
            let files = Authority::create(&dir, &federation, lifetime.unwrap_or(AUTHORITY_LIFETIME)).map_err(failed)?;
            report(&files)
        }
        CaCommand::Issue { node, host, issue } => {
            let node: NodeName = node.parse().map_err(|e| CliError::usage(format!("{e}")))?;
            let name = format!("{}-{}", node.site, node.node);
            let authority = Authority::open(&issue.dir).map_err(failed)?;
            let identity = Identity::node(authority.federation(), node).map_err(|e| CliError::usage(e.to_string()))?;
            issue_one(&authority, Holder::Member(identity), host, issue, &name)
        }
        CaCommand::Client { name, issue } => {
            let authority = Authority::open(&issue.dir).map_err(failed)?;
            let identity =
                Identity::client(authority.federation(), &name).map_err(|e| CliError::usage(e.to_string()))?;
            issue_one(&authority, Holder::Member(identity), Vec::new(), issue, &name)
        }
    }
}

fn issue_one(
    authority: &Authority,
    holder: Holder,
    hosts: Vec<String>,
    issue: IssueArgs,
    name: &str,
) -> Result<Exit, CliError> {
    let request = Request { holder, hosts, lifetime: issue.lifetime.unwrap_or(CERTIFICATE_LIFETIME) };
    let out = issue.out.unwrap_or(issue.dir);
    report(&authority.issue(&request, &out, name).map_err(failed)?)
}

fn report(files: &Issued) -> Result<Exit, CliError> {
    let show = |path: &Path| path.display().to_string();
    output::line(&format!("{}\n{}", show(&files.cert), show(&files.key)))?;
    Ok(Exit::Done)
}

fn failed(error: CaError) -> CliError {
    let exit = match error {
        CaError::Name(_) | CaError::Host(_) | CaError::Lifetime(_) => Exit::Usage,
        _ => Exit::Failed,
    };
    CliError::new(exit, error.to_string())
}
