//! The audit trail as the door keeps it: what it says, and what nobody can do to it.

use prost::Message as _;
use tonic::{Code, Request, Status, codegen::http::uri::PathAndQuery};

use super::rights::{TOKENS, token_file};
use crate::{
    api::{self, messages_client::MessagesClient},
    grpc::{audit, refusals::RECORDED_MAX},
    limits::CLIENT_ADMIN_CALLS_MAX,
    testing::*,
};

/// As much of the protocol's description as names its calls.
#[derive(Clone, PartialEq, prost::Message)]
struct Files {
    #[prost(message, repeated, tag = "1")]
    file: Vec<File>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct File {
    #[prost(message, repeated, tag = "6")]
    service: Vec<Named>,
}

/// A service with its calls, or a call.
#[derive(Clone, PartialEq, prost::Message)]
struct Named {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(message, repeated, tag = "2")]
    method: Vec<CallNamed>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct CallNamed {
    #[prost(string, tag = "1")]
    name: String,
}

/// All calls of the admin service, as the protocol describes it.
pub(super) fn calls() -> Vec<String> {
    let files = Files::decode(api::DESCRIPTORS).unwrap();
    let admin = files.file.into_iter().flat_map(|file| file.service).find(|service| service.name == "Admin").unwrap();
    admin.method.into_iter().map(|method| method.name).collect()
}

/// Calls the admin service by name, with an empty request.
pub(super) async fn call(harness: &Harness, name: &str, token: Option<&str>) -> Result<(), Status> {
    let mut client = tonic::client::Grpc::new(harness.channel().await);
    client.ready().await.unwrap();
    let mut request = Request::new(());
    if let Some(token) = token {
        request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    }
    let path: PathAndQuery = format!("/seaway.v1.Admin/{name}").parse().unwrap();
    let codec = tonic_prost::ProstCodec::<(), ()>::default();
    client.unary(request, path, codec).await.map(drop)
}

#[test]
fn the_calls_that_records_may_name_are_all_there_are() {
    let (mut known, mut all) = (audit::CALLS.map(str::to_owned).to_vec(), calls());
    known.sort();
    all.sort();
    assert_eq!(known, all);
}

/// The records so far: the path, who, the detail, the outcome.
async fn records(harness: &Harness, count: usize) -> Vec<[String; 4]> {
    let client = MessagesClient::with_interceptor(harness.channel().await, |mut request: Request<()>| {
        request.metadata_mut().insert("authorization", "Bearer admin-admin-admin".parse().unwrap());
        Ok(request)
    });
    let mut reading = Subscriber::open(client, open("_audit/#")).await.unwrap();
    let records = reading.messages(count).await;
    reading.nothing_more().await;
    let told = records.iter().map(|record| {
        let value: serde_json::Value = serde_json::from_slice(&record.payload).unwrap();
        let text = |key: &str| value[key].as_str().unwrap().to_owned();
        let call = text("call");
        assert_eq!(record.path, format!("_audit/{call}"));
        [call, text("who"), text("detail"), text("outcome").split(':').next().unwrap().to_owned()]
    });
    told.collect()
}

async fn start(engine: &TestEngine) -> Harness {
    Harness::start_with(engine, |config| config.auth.token_file = Some(token_file(TOKENS))).await
}

const ADMIN: &str = "admin-admin-admin";

#[tokio::test]
async fn every_call_that_changes_a_node_says_what_it_is_about() {
    let engine = TestEngine::new();
    let harness = start(&engine).await;
    let mut admin = harness.admin().await;
    let change = Some(api::TopicChange { queues: Some(4), ..Default::default() });
    let set = api::SetTopicRequest { topic: "orders".into(), change: change.clone() };
    admin.set_topic(with_token(set, ADMIN)).await.unwrap_err();
    let create = api::CreateTopicRequest { topic: "orders".into(), change };
    admin.create_topic(with_token(create, ADMIN)).await.unwrap_err();
    let to = Some(api::trim_topic_request::To::KeepSize(7));
    let trim = api::TrimTopicRequest { topic: "orders".into(), origin: String::new(), to };
    admin.trim_topic(with_token(trim, ADMIN)).await.unwrap_err();
    let remove = api::RemoveTopicRequest { topic: "orders".into(), force: true };
    admin.remove_topic(with_token(remove, ADMIN)).await.unwrap_err();
    for yes in [false, true] {
        let remove = api::RemoveSiteRequest { site: "west".into(), yes };
        admin.remove_site(with_token(remove, ADMIN)).await.unwrap_err();
    }
    let record = |call: &str, detail: &str, outcome: &str| [call, "token:admin", detail, outcome].map(str::to_owned);
    assert_eq!(
        records(&harness, 5).await,
        [
            record("SetTopic", "topic orders: queues=4", "NotFound"),
            record("CreateTopic", "topic orders: queues=4", "NotFound"),
            record("TrimTopic", "topic orders: to 7 bytes", "NotFound"),
            record("RemoveTopic", "topic orders, by force", "NotFound"),
            record("RemoveSite", "site west", "NotFound"), // and nothing of the one that only asked
        ]
    );
    harness.stop().await;
}

#[tokio::test]
async fn no_call_leaves_a_record_that_says_nothing() {
    let engine = TestEngine::new();
    let harness = start(&engine).await;
    let mut made = 0;
    for name in calls() {
        let _ = call(&harness, &name, Some(ADMIN)).await;
        // An empty request to remove a site, or to skip what is missing, only asks.
        let asks = ["RemoveSite", "SkipTopic"].contains(&name.as_str());
        let looks = asks || audit::LOOKING.iter().any(|looking| name.starts_with(looking));
        made += usize::from(!looks);
    }
    for [call, who, detail, _] in records(&harness, made).await {
        assert!(who == "token:admin" && !detail.is_empty() && detail != "not looked at", "{call}: {detail:?}");
    }
    harness.stop().await;
}

#[tokio::test]
async fn who_may_change_nothing_cannot_fill_the_trail() {
    let engine = TestEngine::new();
    let harness = start(&engine).await;
    let refused = 40;
    for number in 0..refused {
        // Of calls that there are and that there are not, and of names that no path can have.
        let name = ["RemoveSite", "Drain", "+", "no-such-call"][number % 4];
        call(&harness, name, Some("orders-orders-orders")).await.unwrap_err();
    }
    let first = records(&harness, usize::try_from(RECORDED_MAX).unwrap()).await;
    let names: Vec<&str> = first.iter().map(|[call, ..]| call.as_str()).collect();
    assert_eq!(names, ["RemoveSite", "Drain", "Unknown", "Unknown", "RemoveSite"]);
    assert!(first.iter().all(|[_, who, detail, outcome]| {
        who == "token:orders"
            && detail == "not looked at"
            && ["PermissionDenied", "Unimplemented"].contains(&&**outcome)
    }));
    // Another caller's records are not touched by that.
    call(&harness, "DeleteGroup", Some(ADMIN)).await.unwrap_err();
    assert_eq!(records(&harness, first.len() + 1).await.pop().unwrap()[0], "DeleteGroup");
    harness.stop().await;
    // And at the latest when the door closes the rest are summed up.
    let harness = start(&engine).await;
    let [call, who, detail, outcome] = records(&harness, first.len() + 2).await.pop().unwrap();
    assert_eq!([call.as_str(), who.as_str(), outcome.as_str()], ["Refused", "token:orders", "refused"]);
    let rest = refused - first.len();
    assert!(detail.starts_with(&format!("{rest} more calls")), "{detail}");
    harness.stop().await;
}

#[tokio::test]
async fn requests_and_calls_at_one_time_are_bounded() {
    let engine = TestEngine::manual();
    let harness = start(&engine).await;
    let mut admin = harness.admin().await;
    let long = api::RevokeTokenRequest { name: "x".repeat(64 * 1024) };
    let status = admin.revoke_token(with_token(long, ADMIN)).await.unwrap_err();
    assert_eq!(status.code(), Code::OutOfRange, "{}", status.message());
    // Calls that wait for a log which takes nothing.
    let mut waiting = Vec::new();
    for number in 0..CLIENT_ADMIN_CALLS_MAX {
        let mut admin = admin.clone();
        let request = api::CreateTokenRequest { name: format!("t{number}"), ..Default::default() };
        waiting.push(tokio::spawn(async move { admin.create_token(with_token(request, ADMIN)).await.map(drop) }));
    }
    let status = soon("one too many", async {
        loop {
            match call(&harness, "Status", Some(ADMIN)).await {
                Err(status) => return status,
                Ok(()) => tokio::time::sleep(std::time::Duration::from_millis(5)).await,
            }
        }
    })
    .await;
    assert_eq!(status.code(), Code::ResourceExhausted, "{}", status.message());
    engine.sync();
    for one in waiting {
        soon("an answer", async {
            // What they wait for may have come after the first turn.
            let mut one = one;
            loop {
                tokio::select! {
                    done = &mut one => break done.unwrap().unwrap(),
                    () = tokio::time::sleep(std::time::Duration::from_millis(10)) => engine.sync(),
                }
            }
        })
        .await;
    }
    call(&harness, "Status", Some(ADMIN)).await.unwrap();
    engine.sync();
    harness.stop().await;
}
