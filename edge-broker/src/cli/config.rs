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
            let loaded = load(&args)?;
            output::line(&format!("{} is right", args.file.display()))?;
            for missing in unreadable(&loaded) {
                output::note(&format!("seaway: {missing}; the node will not start without it"));
            }
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

/// Files that the configuration names and that cannot be read here: no mistake of its own, since it may be checked
/// elsewhere than it is used.
fn unreadable(loaded: &Loaded) -> Vec<String> {
    let (Ok(node), Ok(door)) = (loaded.node_config(), loaded.door_config()) else { return Vec::new() };
    let mut files = vec![node.tls.cert, node.tls.key, node.tls.ca];
    if let Some(door) = door {
        files.extend(door.tls.into_iter().flat_map(|tls| [Some(tls.cert), Some(tls.key), tls.client_ca]).flatten());
        files.extend(door.auth.token_file);
    }
    files.sort();
    files.dedup();
    let fails = |file: &std::path::PathBuf| {
        std::fs::File::open(file).err().map(|e| format!("{} cannot be read: {e}", file.display()))
    };
    files.iter().filter_map(fails).collect()
}

fn load(args: &ConfigArgs) -> Result<Loaded, CliError> {
    let wrong = |e: crate::config::ConfigError| CliError::failed(e.to_string());
    let loaded = Loaded::load(&args.file, std::env::vars(), &args.set).map_err(wrong)?;
    loaded.node_config().map_err(wrong)?;
    loaded.door_config().map_err(wrong)?;
    crate::cli::node::log_filter(&loaded)?;
    Ok(loaded)
}
