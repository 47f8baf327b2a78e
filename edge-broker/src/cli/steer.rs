//! Commands that change a node.

use std::time::{SystemTime, UNIX_EPOCH};

use seaway_federation_proto::ids::Pattern;
use serde_json::json;

use super::{
    CliError, Exit,
    args::{NamedArgs, TokenCreateArgs},
    client::Servers,
    output,
};
use crate::api::{CreateTokenRequest, DeleteGroupRequest, RevokeTokenRequest, Rights};

pub(crate) async fn remove_group(args: NamedArgs) -> Result<Exit, CliError> {
    let mut admin = Servers::of(&args.list.client)?.admin().await?;
    admin.delete_group(DeleteGroupRequest { group: args.name.clone() }).await?;
    let view = json!({"group": args.name, "deleted": true});
    output::told(args.list.output, &view, &format!("group {} is deleted", args.name))?;
    Ok(Exit::Done)
}

pub(crate) async fn create_token(args: TokenCreateArgs) -> Result<Exit, CliError> {
    crate::auth::tokens::check_name(&args.name).map_err(CliError::usage)?;
    for pattern in args.publish.iter().chain(&args.subscribe) {
        pattern.parse::<Pattern>().map_err(|e| CliError::usage(e.to_string()))?;
    }
    if args.publish.is_empty() && args.subscribe.is_empty() && !args.admin {
        return Err(CliError::usage("this token would have no rights; give --publish, --subscribe or --admin"));
    }
    let expires_us = match args.expires_in {
        None => 0,
        Some(lifetime) if lifetime.is_zero() => {
            return Err(CliError::usage(
                "--expires-in is 0: such a token would have expired already; leave it out for one that never does",
            ));
        }
        Some(lifetime) => SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .ok()
            .and_then(|now| u64::try_from(now.checked_add(lifetime)?.as_micros()).ok())
            .ok_or_else(|| CliError::usage("--expires-in is too long"))?,
    };
    let rights = Rights { publish: args.publish, subscribe: args.subscribe, admin: args.admin };
    let request = CreateTokenRequest { name: args.name.clone(), rights: Some(rights), expires_us };
    let mut admin = Servers::of(&args.list.client)?.admin().await?;
    let reply = admin.create_token(request).await?.into_inner();
    output::told(args.list.output, &json!({"name": args.name, "token": reply.token}), &reply.token)?;
    Ok(Exit::Done)
}

pub(crate) async fn revoke_token(args: NamedArgs) -> Result<Exit, CliError> {
    let mut admin = Servers::of(&args.list.client)?.admin().await?;
    admin.revoke_token(RevokeTokenRequest { name: args.name.clone() }).await?;
    let view = json!({"name": args.name, "revoked": true});
    output::told(args.list.output, &view, &format!("token {} is revoked", args.name))?;
    Ok(Exit::Done)
}
