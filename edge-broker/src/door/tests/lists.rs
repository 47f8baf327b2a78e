use crate::{api, testing::*};

#[tokio::test]
async fn a_list_is_given_whole_in_pages_of_the_size_asked_for() {
    let engine = TestEngine::new();
    let harness = Harness::start(&engine).await;
    let topics: Vec<String> = (0..7).map(|n| format!("topic-{n}")).collect();
    for topic in &topics {
        harness.publish(topic, numbered(0..1)).await;
    }
    let mut admin = harness.admin().await;
    let (mut seen, mut pages) = (Vec::new(), 0);
    let mut request = api::ListTopicsRequest { page_size: 3, ..Default::default() };
    loop {
        let reply = soon("a page", admin.list_topics(request.clone())).await.unwrap().into_inner();
        assert!(reply.topics.len() <= 3);
        assert!(reply.topics.iter().all(|t| t.state() == api::TopicState::Own));
        seen.extend(reply.topics.into_iter().map(|t| t.topic));
        pages += 1;
        if reply.next_page_token.is_empty() {
            break;
        }
        request.page_token = reply.next_page_token;
    }
    assert_eq!((seen, pages), (topics, 3));
    let status = soon("the status", admin.status(api::StatusRequest {})).await.unwrap().into_inner();
    assert!(status.topics.len() == 7 && !status.topics_left_out);
    harness.stop().await;
}

#[tokio::test]
async fn tokens_come_in_pages_too() {
    let engine = TestEngine::new();
    let secret = "secret-secret-secret";
    let admin = format!("[[token]]\nname='admin'\ntoken='{secret}'\nadmin=true\n");
    let others = (0..5).map(|n| format!("[[token]]\nname='token-{n}'\ntoken='{secret}-{n}'\n"));
    let file = super::rights::token_file(&others.fold(admin, |all, one| all + &one));
    let harness = Harness::start_with(&engine, |config| config.auth.token_file = Some(file)).await;
    let mut admin = harness.admin().await;
    let (mut seen, mut page_token) = (Vec::new(), String::new());
    loop {
        let request = with_token(api::ListTokensRequest { page_size: 4, page_token }, secret);
        let reply = soon("a page", admin.list_tokens(request)).await.unwrap().into_inner();
        assert!(reply.tokens.len() <= 4);
        seen.extend(reply.tokens.into_iter().map(|t| t.name));
        page_token = reply.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    assert_eq!(seen, ["admin", "token-0", "token-1", "token-2", "token-3", "token-4"]);
    harness.stop().await;
}
