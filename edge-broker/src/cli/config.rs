//! `seaway config`: what a node would make of its configuration.

use super::{
    CliError, Exit,
    args::{ConfigArgs, ConfigCommand, Output},
    output,
};
use crate::config::Loaded;

/// Runs one of its commands.
pub(crate) fn run(command: ConfigCommand) -> Result<Exit, CliError> {
    match command {
        ConfigCommand::Check(args) => {
            load(&args)?;
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

fn load(args: &ConfigArgs) -> Result<Loaded, CliError> {
    let wrong = |e: crate::config::ConfigError| CliError::failed(e.to_string());
    let loaded = Loaded::load(&args.file, std::env::vars(), &args.set).map_err(wrong)?;
    loaded.node_config().map_err(wrong)?;
    loaded.door_config().map_err(wrong)?;
    crate::cli::node::log_filter(&loaded)?;
    Ok(loaded)
}
