//! `seaway config`: what a node would make of its configuration.

use seaway_relay::transport::tls::Credentials;

use super::{
    CliError, Exit,
    args::{ConfigArgs, ConfigCommand, Output},
    output,
};
use crate::{config::Loaded, door};

/// Runs one of its commands.
pub(crate) fn run(command: ConfigCommand) -> Result<Exit, CliError> {
    match command {
        // Asks a node, so it is run elsewhere.
        ConfigCommand::Reload(args) => return super::client::block_on(super::operate::reload(args)),
        ConfigCommand::Check(args) => {
            let loaded = load(&args)?;
            check_files(&loaded)?;
            loaded.warnings().iter().for_each(|warning| output::note(&format!("warning: {warning}")));
            output::line(&format!("{} is right", args.file.display()))?;
        }
        ConfigCommand::Show { config, output: how } => {
            let loaded = load(&config)?;
            match how {
                Output::Json => output::json(&loaded.settings)?,
                Output::Table => {
                    let text = toml::to_string(&loaded.settings).map_err(|e| CliError::failed(e.to_string()))?;
                    output::bytes(text.as_bytes())?;
                }
            }
        }
    }
    Ok(Exit::Done)
}

/// The files that the configuration names, as the node would find them.
fn check_files(loaded: &Loaded) -> Result<(), CliError> {
    let wrong = |e: crate::config::ConfigError| CliError::failed(e.to_string());
    let (node, door) = (loaded.node_config().map_err(wrong)?, loaded.door_config().map_err(wrong)?);
    let would = |why: String| {
        CliError::failed(format!(
            "the settings in {} are right, but the node would not start: {why}",
            loaded.path().display()
        ))
    };
    Credentials::load(&node.tls, &node.federation, &node.name).map_err(|e| would(e.to_string()))?;
    door.map_or(Ok(()), |door| door::check_files(&door)).map_err(|e| would(e.to_string()))
}

fn load(args: &ConfigArgs) -> Result<Loaded, CliError> {
    let wrong = |e: crate::config::ConfigError| CliError::failed(e.to_string());
    let loaded = Loaded::load(&args.file, std::env::vars(), &args.set).map_err(wrong)?;
    loaded.node_config().map_err(wrong)?;
    loaded.door_config().map_err(wrong)?;
    crate::cli::node::log_filter(&loaded)?;
    Ok(loaded)
}
