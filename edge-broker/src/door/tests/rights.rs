use std::{io::Write, path::PathBuf, time::Duration};

use seaway_relay::{
    ca::{Authority, Holder, Issued, Request as CertificateRequest},
    transport::identity::Identity as MemberIdentity,
};
use tonic::{
    Code,
    transport::{Certificate, Channel, ClientTlsConfig, Identity},
};

use crate::{
    api::{self, messages_client::MessagesClient},
    door::{ClientGrant, Door, DoorConfig, DoorError, DoorTls, Rights},
    grpc::convert::batch_of_one,
    testing::*,
};

/// A token file that stays until the process ends.
pub(super) fn token_file(text: &str) -> PathBuf {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file.into_temp_path().keep().unwrap()
}

pub(super) const TOKENS: &str = r##"
[[token]]
name = "orders"
token = "orders-orders-orders"
publish = ["orders/#"]
subscribe = ["orders/+"]

[[token]]
name = "admin"
token = "admin-admin-admin"
admin = true

[[token]]
name = "old"
token = "expired-expired-expired"
publish = ["#"]
expires = "2020-01-01T00:00:00Z"
"##;

#[tokio::test]
async fn a_token_allows_what_its_rights_say_and_no_more() {
    let engine = TestEngine::new();
    let harness = Harness::start_with(&engine, |config| {
        config.auth.anonymous = None;
        config.auth.token_file = Some(token_file(TOKENS));
    })
    .await;
    let mut client = harness.messages().await;
    let mut publish = async |path: &str, token: &str| client.publish(with_token(request(path, "x"), token)).await;
    publish("orders/new", "orders-orders-orders").await.unwrap();
    let status = publish("other", "orders-orders-orders").await.unwrap_err();
    assert_eq!((status.code(), code(&status).as_str()), (Code::PermissionDenied, "not-allowed"));
    assert!(status.message().contains("token:orders lacks the right to publish to other"), "{}", status.message());
    for (token, text) in [("nobody-nobody-nobody", "not known"), ("expired-expired-expired", "expired")] {
        let status = publish("orders", token).await.unwrap_err();
        assert_eq!((status.code(), code(&status).as_str()), (Code::Unauthenticated, "unauthenticated"));
        assert!(status.message().contains(text), "{}", status.message());
    }
    let status = harness.messages().await.publish(request("orders", "x")).await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated);
    let client = MessagesClient::with_interceptor(harness.channel().await, |mut request: tonic::Request<()>| {
        request.metadata_mut().insert("authorization", "Bearer orders-orders-orders".parse().unwrap());
        Ok(request)
    });
    Subscriber::open(client.clone(), open("orders/+")).await.unwrap();
    let status = Subscriber::open(client, open("orders/#")).await.err().unwrap();
    assert_eq!(status.code(), Code::PermissionDenied);
    assert!(status.message().contains("subscribe to orders/#"), "{}", status.message());
    let mut admin = harness.admin().await;
    let status = admin.status(with_token(api::StatusRequest {}, "orders-orders-orders")).await.unwrap_err();
    assert!(status.message().contains("admin right"), "{}", status.message());
    let seen = admin.status(with_token(api::StatusRequest {}, "admin-admin-admin")).await.unwrap().into_inner();
    assert_eq!((seen.site.as_str(), seen.state.as_str(), seen.topics.len()), ("east", "ready", 1));
    assert!(seen.counters.iter().any(|c| c.label == "not-allowed" && c.value >= 4));
    harness.stop().await;
}

#[tokio::test]
async fn created_tokens_work_survive_a_restart_and_can_be_revoked() {
    let engine = TestEngine::new();
    let secure = |config: &mut DoorConfig| {
        config.auth.anonymous = Some(all_rights());
        config.auth.token_file = Some(token_file(TOKENS));
    };
    let harness = Harness::start_with(&engine, secure).await;
    let mut admin = harness.admin().await;
    let create = || api::CreateTokenRequest {
        name: "fresh".into(),
        rights: Some(api::Rights { publish: vec!["a/#".into()], ..api::Rights::default() }),
        expires_us: 0,
    };
    let status = admin.create_token(create()).await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated, "never for unknown callers, whatever rights they are given");
    let token = admin.create_token(with_token(create(), "admin-admin-admin")).await.unwrap().into_inner().token;
    assert!(admin.create_token(with_token(create(), "admin-admin-admin")).await.is_err(), "names are unique");
    harness.stop().await;

    let engine = engine.restart();
    let stored = crate::engine::Engine::scan_state(&engine, seaway_relay::log::contract::Table::Tokens, b"");
    assert!(
        stored.iter().all(|(_, v)| !v.windows(token.len()).any(|w| w == token.as_bytes())),
        "only the hash is kept"
    );
    let harness = Harness::start_with(&engine, secure).await;
    let mut client = harness.messages().await;
    client.publish(with_token(request("a/b", "x"), &token)).await.unwrap();
    let mut admin = harness.admin().await;
    let listed = admin.list_tokens(with_token(api::ListTokensRequest::default(), "admin-admin-admin")).await.unwrap();
    let listed: Vec<_> = listed.into_inner().tokens.into_iter().map(|t| (t.name, t.from)).collect();
    assert_eq!(listed.len(), 4);
    assert!(listed.contains(&("fresh".into(), "node".into())) && listed.contains(&("admin".into(), "file".into())));
    let revoke = |name: &str| with_token(api::RevokeTokenRequest { name: name.into() }, "admin-admin-admin");
    admin.revoke_token(revoke("fresh")).await.unwrap();
    assert!(admin.revoke_token(revoke("admin")).await.unwrap_err().message().contains("token file"));
    assert_eq!(admin.revoke_token(revoke("none")).await.unwrap_err().code(), Code::NotFound);
    let status = client.publish(with_token(request("a/b", "x"), &token)).await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated);
    harness.stop().await;
}

#[tokio::test]
async fn what_a_token_opened_ends_when_it_is_revoked_or_expires() {
    let engine = TestEngine::new();
    let harness = Harness::start_with(&engine, |config| config.auth.token_file = Some(token_file(TOKENS))).await;
    let mut admin = harness.admin().await;
    let soon_us = || {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        u64::try_from((now + Duration::from_secs(3)).as_micros()).unwrap()
    };
    for revoke in [true, false] {
        let rights = api::Rights { publish: vec!["#".into()], subscribe: vec!["#".into()], admin: false };
        let expires_us = if revoke { 0 } else { soon_us() };
        let create = api::CreateTokenRequest { name: "shop".into(), rights: Some(rights), expires_us };
        let token = admin.create_token(with_token(create, "admin-admin-admin")).await.unwrap().into_inner().token;
        let client =
            MessagesClient::with_interceptor(harness.channel().await, move |mut request: tonic::Request<()>| {
                request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
                Ok(request)
            });
        let mut subscriber = Subscriber::open(client.clone(), open("#")).await.unwrap();
        let mut member = Subscriber::open(client.clone(), member(&format!("g{revoke}"), "#")).await.unwrap();
        let (requests, receiver) = tokio::sync::mpsc::channel(4);
        requests.send(batch_of_one(request("orders", "x"))).await.unwrap();
        let stream = tokio_stream::wrappers::ReceiverStream::new(receiver);
        let mut replies = client.clone().publish_stream(stream).await.unwrap().into_inner();
        assert!(soon("a receipt", replies.message()).await.unwrap().is_some());
        subscriber.messages(1).await;
        if revoke {
            let revoke = api::RevokeTokenRequest { name: "shop".into() };
            admin.revoke_token(with_token(revoke, "admin-admin-admin")).await.unwrap();
        }
        let ended = soon("the publisher's end", replies.message()).await.unwrap_err();
        assert_eq!(ended.code(), Code::Unauthenticated, "{ended:?}");
        for open in [&mut subscriber, &mut member] {
            let mut end = open.next().await;
            while matches!(end, Ok(Some(_))) {
                end = open.next().await;
            }
            assert_eq!(end.unwrap_err().code(), Code::Unauthenticated);
        }
        harness.publish("orders", numbered(0..1)).await; // everybody else goes on
        harness.subscribe(open("orders")).await.unwrap().messages(1).await;
    }
    harness.stop().await;
}

#[tokio::test]
async fn a_token_file_with_a_mistake_is_named() {
    let cases = [
        ("[[token]]\nname='a'\ntoken='short'", "shorter than 16"),
        ("[[token]]\nname='a'", "exactly one of token and sha256"),
        ("[[token]]\nname='a'\ntoken='aaaaaaaaaaaaaaaa'\npublish=['a/#/b']", "'#' must stand alone"),
        ("[[token]]\nname='a'\ntoken='aaaaaaaaaaaaaaaa'\nrights=1", "unknown field"),
        ("[[token]]\nname='a'\ntoken='aaaaaaaaaaaaaaaa'\n[[token]]\nname='a'\ntoken='bbbbbbbbbbbbbbbb'", "twice"),
    ];
    for (text, expected) in cases {
        let mut config = DoorConfig::new(([127, 0, 0, 1], 0).into());
        config.auth.token_file = Some(token_file(text));
        let error = Door::open(config, TestEngine::new()).await.err().unwrap().to_string();
        assert!(error.contains(expected) && error.contains("token file"), "{error}");
    }
}

#[tokio::test]
async fn a_door_that_would_not_be_safe_or_cannot_open_says_why() {
    let config = DoorConfig::new(([0, 0, 0, 0], 0).into());
    assert!(matches!(Door::open(config, TestEngine::new()).await, Err(DoorError::Unsafe(_))));
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let config = DoorConfig::new(taken.local_addr().unwrap());
    let error = Door::open(config, TestEngine::new()).await.err().unwrap();
    assert!(matches!(error, DoorError::Listen { .. }), "{error}");
}

const LIFETIME: Duration = Duration::from_secs(3600);

/// An authority with a door's certificate; issues clients' certificates.
struct Pki {
    dir: tempfile::TempDir,
    authority: Authority,
}

impl Pki {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Authority::create(dir.path(), "test", LIFETIME * 2).unwrap();
        let authority = Authority::open(dir.path()).unwrap();
        Self { dir, authority }
    }

    fn issue(&self, holder: Holder, name: &str) -> Issued {
        let request = CertificateRequest { holder, hosts: vec!["localhost".into()], lifetime: LIFETIME };
        self.authority.issue(&request, self.dir.path(), name).unwrap()
    }

    fn client(&self, name: &str) -> Issued {
        self.issue(Holder::Member(MemberIdentity::client("test", name).unwrap()), name)
    }

    fn node(&self, name: &str) -> Issued {
        self.issue(Holder::Member(MemberIdentity::node("test", format!("east/{name}").parse().unwrap()).unwrap()), name)
    }

    fn door(&self) -> DoorTls {
        let Issued { cert, key } = self.node("door");
        DoorTls { cert, key, client_ca: Some(self.dir.path().join("ca.pem")) }
    }

    async fn connect(&self, harness: &Harness, client: Option<&Issued>) -> Result<Channel, tonic::transport::Error> {
        let ca = std::fs::read(self.dir.path().join("ca.pem")).unwrap();
        let mut tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(ca)).domain_name("localhost");
        if let Some(Issued { cert, key }) = client {
            tls = tls.identity(Identity::from_pem(std::fs::read(cert).unwrap(), std::fs::read(key).unwrap()));
        }
        let endpoint = Channel::from_shared(format!("https://{}", harness.address)).unwrap().tls_config(tls).unwrap();
        soon("a connection", endpoint.connect()).await
    }
}

#[tokio::test]
async fn a_certificate_names_its_client_and_the_configuration_its_rights() {
    let pki = Pki::new();
    let engine = TestEngine::new();
    let harness = Harness::start_with(&engine, |config| {
        config.tls = Some(pki.door());
        config.auth.anonymous = None;
        config.auth.token_file = Some(token_file(TOKENS));
        let rights = Rights { publish: vec!["orders/#".parse().unwrap()], ..Rights::default() };
        config.auth.clients = vec![ClientGrant { name: "shop".into(), rights }];
    })
    .await;
    let publish = async |client: Option<&Issued>, path: &str| {
        let mut client = MessagesClient::new(pki.connect(&harness, client).await.unwrap());
        soon("the answer", client.publish(request(path, "x"))).await
    };
    let shop = pki.client("shop");
    publish(Some(&shop), "orders/a").await.unwrap();
    let status = publish(Some(&shop), "other").await.unwrap_err();
    assert!(status.message().contains("client:shop lacks the right to publish"), "{}", status.message());
    let status = publish(Some(&pki.client("stranger")), "orders/a").await.unwrap_err();
    assert!(status.message().contains("client stranger has no rights here"), "{}", status.message());
    let status = publish(Some(&pki.node("edge-9")), "orders/a").await.unwrap_err();
    assert!(status.message().contains("not a client's"), "{}", status.message());
    assert_eq!(publish(None, "orders/a").await.unwrap_err().code(), Code::Unauthenticated);
    let mut with = MessagesClient::new(pki.connect(&harness, None).await.unwrap());
    with.publish(with_token(request("orders", "x"), "orders-orders-orders")).await.unwrap();
    let foreign = Pki::new();
    let refused = match pki.connect(&harness, Some(&foreign.client("shop"))).await {
        Err(_) => true,
        Ok(channel) => MessagesClient::new(channel).publish(request("orders/a", "x")).await.is_err(),
    };
    assert!(refused, "a certificate of another authority came in");
    harness.stop().await;
}

#[tokio::test]
async fn health_needs_no_token_and_reflection_does() {
    let engine = TestEngine::new();
    let harness = Harness::start_with(&engine, |config| config.auth.anonymous = None).await;
    let mut health = tonic_health::pb::health_client::HealthClient::new(harness.channel().await);
    for service in ["", "seaway.v1.Messages"] {
        let request = tonic_health::pb::HealthCheckRequest { service: service.into() };
        let status = soon("health", async {
            loop {
                match health.check(request.clone()).await {
                    Ok(reply) if reply.get_ref().status == 1 => return reply.into_inner().status,
                    _ => tokio::time::sleep(Duration::from_millis(10)).await,
                }
            }
        })
        .await;
        assert_eq!(status, 1);
    }
    let mut reflection =
        tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient::new(harness.channel().await);
    let status = reflection.server_reflection_info(tokio_stream::empty()).await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated);
    harness.stop().await;
}

#[tokio::test]
async fn a_token_file_with_the_name_of_a_token_that_was_made_here_is_refused_whole() {
    const ADMIN: &str = "[[token]]\nname='admin'\ntoken='admin-admin-admin'\nadmin=true\n";
    let twin = format!("{ADMIN}[[token]]\nname='made'\ntoken='another-secret-of-it'\npublish=['#']\n");
    let engine = TestEngine::new();
    let file = token_file(ADMIN);
    let mut config = DoorConfig::new(([127, 0, 0, 1], 0).into());
    config.auth.token_file = Some(file.clone());
    let door = Door::open(config.clone(), engine.clone()).await.unwrap();
    let (address, handle) = (door.address(), door.handle());
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let serving = tokio::spawn(door.serve(async move { drop(stopped.await) }));
    let channel = Channel::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap();
    let mut admin = api::admin_client::AdminClient::new(channel);
    let create = api::CreateTokenRequest { name: "made".into(), ..Default::default() };
    admin.create_token(with_token(create, "admin-admin-admin")).await.unwrap();

    std::fs::write(&file, &twin).unwrap();
    let refused = handle.reload(&config).unwrap_err().to_string();
    assert!(refused.contains("\"made\"") && refused.contains("made on this node"), "{refused}");
    config.listen = ([127, 0, 0, 1], 0).into();
    assert!(Door::open(config.clone(), engine).await.is_err(), "nor does a node start with it");
    let revoke = with_token(api::RevokeTokenRequest { name: "made".into() }, "admin-admin-admin");
    admin.revoke_token(revoke).await.unwrap();
    handle.reload(&config).unwrap();
    drop((admin, stop));
    soon("the door's end", serving).await.unwrap().unwrap();
}

#[tokio::test]
async fn who_loses_rights_by_a_reload_is_told_and_others_are_not_touched() {
    let engine = TestEngine::new();
    let mut config = DoorConfig::new(([127, 0, 0, 1], 0).into());
    config.auth.anonymous = Some(all_rights());
    let door = Door::open(config.clone(), engine.clone()).await.unwrap();
    let handle = door.handle();
    let harness = Harness::serve(door);
    let mut subscriber = harness.subscribe(open("orders/#")).await.unwrap();
    // The same rights again, and other limits: nobody notices.
    config.limits.messages_per_s = Some(1_000);
    handle.reload(&config).unwrap();
    harness.publish("orders/a", numbered(0..1)).await;
    assert_eq!(payloads(&subscriber.messages(1).await), numbered(0..1));
    config.auth.anonymous.as_mut().unwrap().publish.clear();
    handle.reload(&config).unwrap();
    let status = subscriber.next().await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated);
    assert!(status.message().contains("rights of this client were changed"), "{}", status.message());
    let status = harness.messages().await.publish(request("orders", "x")).await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied);
    // A file that cannot be used changes nothing.
    config.auth.anonymous = Some(all_rights());
    config.auth.token_file = Some("/nowhere/tokens.toml".into());
    assert!(handle.reload(&config).is_err());
    assert_eq!(
        harness.messages().await.publish(request("orders", "x")).await.unwrap_err().code(),
        Code::PermissionDenied
    );
    harness.stop().await;
}

#[tokio::test]
async fn what_changes_a_node_is_recorded_and_admins_alone_read_it() {
    let engine = TestEngine::new();
    let tokens = format!(
        "{TOKENS}[[token]]\nname = \"reader\"\ntoken = \"reader-reader-reader\"\nsubscribe = [\"#\", \"_audit/#\"]\n"
    );
    let harness = Harness::start_with(&engine, |config| config.auth.token_file = Some(token_file(&tokens))).await;
    let mut admin = harness.admin().await;
    let create = |token: &str| {
        let request = api::CreateTokenRequest { name: "made".into(), ..Default::default() };
        with_token(request, token)
    };
    admin.create_token(create("admin-admin-admin")).await.unwrap();
    assert_eq!(admin.create_token(create("orders-orders-orders")).await.unwrap_err().code(), Code::PermissionDenied);
    assert_eq!(admin.create_token(create("nobody-nobody-nobody")).await.unwrap_err().code(), Code::Unauthenticated);
    admin.status(with_token(api::StatusRequest {}, "admin-admin-admin")).await.unwrap();
    let gone = with_token(api::RevokeTokenRequest { name: "gone".into() }, "admin-admin-admin");
    assert_eq!(admin.revoke_token(gone).await.unwrap_err().code(), Code::NotFound);

    let client = async |token: &'static str| {
        MessagesClient::with_interceptor(harness.channel().await, move |mut request: tonic::Request<()>| {
            request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
            Ok(request)
        })
    };
    for pattern in ["_audit", "_audit/#", "_audit/CreateToken"] {
        let denied = Subscriber::open(client("reader-reader-reader").await, open(pattern)).await.err().unwrap();
        assert_eq!(denied.code(), Code::PermissionDenied, "{pattern}");
        let unknown = harness.subscribe(open(pattern)).await.err().unwrap();
        assert_eq!(unknown.code(), Code::Unauthenticated, "{pattern}");
    }
    let other = Subscriber::open(client("admin-admin-admin").await, open("_other/#")).await.err().unwrap();
    assert_eq!(other.code(), Code::PermissionDenied);
    let mut reading = Subscriber::open(client("admin-admin-admin").await, open("_audit/#")).await.unwrap();
    let records = reading.messages(3).await;
    let told: Vec<_> = records
        .iter()
        .map(|record| {
            let value: serde_json::Value = serde_json::from_slice(&record.payload).unwrap();
            assert!(value["time"].as_str().unwrap().ends_with('Z') && value["node"] == "east/edge-1");
            assert!(value["from"].as_str().unwrap().starts_with("127.0.0.1:"), "{value}");
            let text = |key: &str| value[key].as_str().unwrap().to_owned();
            (record.path.clone(), text("who"), text("outcome").split(':').next().unwrap().to_owned())
        })
        .collect();
    let expected = [
        ("_audit/CreateToken", "token:admin", "ok"),
        ("_audit/CreateToken", "token:orders", "PermissionDenied"),
        ("_audit/RevokeToken", "token:admin", "NotFound"),
    ];
    assert_eq!(told, expected.map(|(path, who, outcome)| (path.to_owned(), who.to_owned(), outcome.to_owned())));
    let all = String::from_utf8(records[0].payload.to_vec()).unwrap();
    assert!(all.contains("made") && !all.contains("swt_"), "{all}");
    // Nobody writes there, and no # reads it.
    let status = harness.messages().await.publish(request("_audit/x", "x")).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    harness.stop().await;
}

#[tokio::test]
async fn a_log_that_takes_nothing_holds_up_no_admin_call_for_long() {
    let engine = TestEngine::manual();
    let harness = Harness::start_with(&engine, |config| config.auth.token_file = Some(token_file(TOKENS))).await;
    let mut admin = harness.admin().await;
    let gone = with_token(api::DeleteGroupRequest { group: "gone".into() }, "admin-admin-admin");
    let status = soon("the answer", admin.delete_group(gone)).await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound);
    engine.sync();
    harness.stop().await;
}

#[tokio::test]
async fn what_steers_is_never_done_for_unknown_callers() {
    let engine = TestEngine::new();
    let harness = Harness::start(&engine).await;
    let mut steering = 0;
    for call in super::audit::calls() {
        // Of the state all may be shown; the tokens and levels only to those who may change them.
        let seen = [
            "Status",
            "ListLinks",
            "ListTopics",
            "ListGroups",
            "ListSites",
            "ListLimits",
            "ListQueues",
            "Topology",
            "ExplainRoute",
            "Find",
        ];
        let answer = super::audit::call(&harness, &call, None).await;
        if !seen.contains(&call.as_str()) {
            assert_eq!(answer.unwrap_err().code(), Code::Unauthenticated, "{call}");
            steering += 1;
        }
    }
    assert!(steering >= 15, "{steering}");
    harness.stop().await;
}
