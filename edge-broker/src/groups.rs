//! Durable groups of this site: members share the logs that the group's pattern covers, and what they confirm is kept.
//!
//! Each log is served to one member at a time, so within a log messages come in order. A group's [`position`] in a log
//! is the place below which all is confirmed, and the ranges confirmed above it; it is stored before a confirmation is
//! answered. What a member had when it left, or did not confirm in time, is delivered again, in order. [`state`] decides
//! this, without clocks or I/O; one [`actor`] for each group carries it out.

pub(crate) mod actor;
mod assign;
pub(crate) mod position;
pub(crate) mod record;
pub(crate) mod state;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use seaway_federation_proto::replication::Want;
use seaway_relay::log::contract::Table;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};

use self::{
    actor::{Actor, Command},
    position::LogPosition,
    record::Definition,
};
use crate::{
    api,
    door::DoorError,
    engine::Engine,
    grpc::errors,
    limits::GROUPS_MAX,
    subscriptions::{credit::Credit, filter::Filter, replies::Replies, start::StartAt},
};

/// Longest name of a group, bytes.
const NAME_BYTES_MAX: usize = 128;
/// Commands that wait for a group.
const COMMANDS_QUEUED_MAX: usize = 32;

/// How a member speaks to its group.
#[derive(Debug, Clone)]
pub(crate) struct Member {
    /// Names the member in commands.
    pub(crate) id: u64,
    /// Takes commands.
    pub(crate) commands: mpsc::Sender<Command>,
}

#[derive(Debug)]
struct Handle {
    definition: Definition,
    commands: mpsc::Sender<Command>,
}

/// The groups of this site.
#[derive(Debug)]
pub(crate) struct Groups<E> {
    engine: E,
    confirm_timeout: Duration,
    drain: CancellationToken,
    /// Held for a look or a change, never while anything is waited for.
    groups: parking_lot::Mutex<BTreeMap<String, Handle>>,
    /// Held by name while a group is made or deleted: that reads many logs and waits for the disk, and stops no other group.
    changing: parking_lot::Mutex<BTreeMap<String, Arc<tokio::sync::Mutex<()>>>>,
}

/// The right to make or delete one group.
struct Changing<'a> {
    name: String,
    all: &'a parking_lot::Mutex<BTreeMap<String, Arc<tokio::sync::Mutex<()>>>>,
    lock: Option<tokio::sync::OwnedMutexGuard<()>>,
}

impl Drop for Changing<'_> {
    fn drop(&mut self) {
        let mut all = self.all.lock();
        drop(self.lock.take());
        // Nobody else waits for it: others come by the map, which is locked.
        if all.get(&self.name).is_some_and(|lock| Arc::strong_count(lock) == 1) {
            all.remove(&self.name);
        }
    }
}

/// How a new member comes in.
#[derive(Debug)]
pub(crate) struct Joining {
    /// The group.
    pub(crate) group: String,
    /// Which messages the group means; must be the group's own where it exists.
    pub(crate) filter: Filter,
    /// Where a new group begins; an existing one goes on where it was.
    pub(crate) start: StartAt,
    /// First credit.
    pub(crate) credit: Credit,
    /// Where messages go.
    pub(crate) replies: Replies,
}

impl<E: Engine> Groups<E> {
    /// Brings back the groups that are stored.
    pub(crate) fn open(engine: E, confirm_timeout: Duration, drain: CancellationToken) -> Result<Arc<Self>, DoorError> {
        let mut groups = BTreeMap::new();
        for (key, value) in engine.scan_state(Table::Groups, record::GROUP_PREFIX.as_bytes()) {
            let (name, definition) = record::decode_group(&key, &value).map_err(DoorError::State)?;
            let stored = engine.scan_state(Table::Groups, record::positions_prefix(&name).as_bytes());
            let positions: Result<BTreeMap<_, _>, _> =
                stored.iter().map(|(k, v)| record::decode_position(k, v)).collect();
            let positions = positions.map_err(DoorError::State)?;
            let actor = Actor::new(engine.clone(), &name, &definition, positions, confirm_timeout, drain.clone());
            groups.insert(name, Handle { definition, commands: start(actor) });
        }
        let groups = parking_lot::Mutex::new(groups);
        Ok(Arc::new(Self { engine, confirm_timeout, drain, groups, changing: parking_lot::Mutex::default() }))
    }

    /// Joins a group, making it if it is new.
    pub(crate) async fn join(&self, joining: Joining) -> Result<Member, Status> {
        let commands = self.find_or_create(&joining).await?;
        let (answer, answered) = oneshot::channel();
        let command = Command::Join { credit: joining.credit, replies: joining.replies, answer };
        let gone = || errors::unavailable("the group was deleted or is stopping; try again");
        commands.send(command).await.map_err(|_| gone())?;
        let id = answered.await.map_err(|_| gone())??;
        Ok(Member { id, commands })
    }

    async fn change(&self, name: &str) -> Changing<'_> {
        let mine = self.changing.lock().entry(name.to_owned()).or_default().clone();
        let mut changing = Changing { name: name.to_owned(), all: &self.changing, lock: None };
        changing.lock = Some(mine.lock_owned().await);
        changing
    }

    /// The group that is there; refused where it means something else.
    fn find(&self, joining: &Joining) -> Result<Option<mpsc::Sender<Command>>, Status> {
        let groups = self.groups.lock();
        let Some(handle) = groups.get(&joining.group) else { return Ok(None) };
        if handle.definition.filter != joining.filter {
            let pattern = &handle.definition.filter.pattern;
            let text = format!(
                "group {} exists with pattern {pattern} or other origins; use those, or another name",
                joining.group
            );
            return Err(errors::status(Code::FailedPrecondition, "group-differs", text));
        }
        Ok(Some(handle.commands.clone()))
    }

    async fn find_or_create(&self, joining: &Joining) -> Result<mpsc::Sender<Command>, Status> {
        check_name(&joining.group).map_err(errors::invalid)?;
        if let Some(commands) = self.find(joining)? {
            return Ok(commands);
        }
        let _changing = self.change(&joining.group).await;
        if let Some(commands) = self.find(joining)? {
            return Ok(commands);
        }
        if self.groups.lock().len().saturating_add(self.changing.lock().len()) > GROUPS_MAX {
            return Err(errors::too_many(format!("there are {GROUPS_MAX} groups already; delete some first")));
        }
        let (definition, positions) = self.create(joining).await?;
        let name = joining.group.clone();
        let actor =
            Actor::new(self.engine.clone(), &name, &definition, positions, self.confirm_timeout, self.drain.clone());
        let commands = start(actor);
        self.groups.lock().insert(name, Handle { definition, commands: commands.clone() });
        Ok(commands)
    }

    /// Stores a new group with where it begins in the logs that are there, and makes its want.
    async fn create(
        &self,
        joining: &Joining,
    ) -> Result<(Definition, BTreeMap<seaway_federation_proto::ids::LogName, LogPosition>), Status> {
        let definition = Definition { filter: joining.filter.clone(), start: joining.start.for_want() };
        let mut positions = BTreeMap::new();
        for log in self.engine.logs().into_iter().filter(|log| definition.filter.covers(log)) {
            let Some(info) = self.engine.info(&log) else { continue };
            let cursor = joining.start.resolve(&self.engine, &log, &info).await;
            let cursor = cursor.map_err(|error| errors::unavailable(error.to_string()))?;
            positions.insert(log, LogPosition::new(cursor.at(), cursor.passed().clone()));
        }
        // The want first: without its group it is harmless, and made again by the next attempt.
        let Filter { pattern, origins } = definition.filter.clone();
        let want = Want { id: want_id(&joining.group), pattern, origins, start: definition.start, registers: true };
        self.engine.put_want(want).await.map_err(|error| errors::engine_status(&error))?;
        let mut changes = vec![record::encode_group(&joining.group, &definition)];
        changes.extend(positions.iter().map(|(log, position)| record::encode_position(&joining.group, log, position)));
        self.engine.put_state(changes).await.map_err(|error| errors::engine_status(&error))?;
        Ok((definition, positions))
    }

    /// Deletes a group with its positions and its want.
    pub(crate) async fn delete(&self, name: &str) -> Result<(), Status> {
        let _changing = self.change(name).await;
        let found = self.groups.lock().get(name).map(|handle| handle.commands.clone());
        let Some(commands) = found else {
            return Err(errors::not_found(format!("there is no group named {name}")));
        };
        let (answer, answered) = oneshot::channel();
        if commands.send(Command::Delete(answer)).await.is_ok() {
            let _ = answered.await; // the actor is gone either way
        }
        let mut keys: BTreeSet<_> = [record::group_key(name)].into();
        let (engine, prefix) = (self.engine.clone(), record::positions_prefix(name));
        // It waits on the disk.
        let scan = move || engine.scan_state(Table::Groups, prefix.as_bytes());
        let stored = tokio::task::spawn_blocking(scan).await;
        let stored = stored.map_err(|_| errors::unavailable("reading the group's positions failed; try again"))?;
        keys.extend(stored.into_iter().map(|(key, _)| key));
        let changes = keys.into_iter().map(|key| (Table::Groups, key, None)).collect();
        self.engine.put_state(changes).await.map_err(|error| errors::engine_status(&error))?;
        self.engine.remove_want(&want_id(name)).await.map_err(|error| errors::engine_status(&error))?;
        self.groups.lock().remove(name); // last: whoever failed above tries again
        Ok(())
    }

    /// Groups that read a topic of an origin, and have members or have not confirmed all of it.
    pub(crate) async fn active_on(&self, topic: &str, origin: &str) -> Vec<String> {
        let covers = |name: &str| {
            let groups = self.groups.lock();
            let topic = topic.parse().ok();
            let filter = groups.get(name).map(|handle| handle.definition.filter.clone());
            filter
                .zip(topic)
                .zip(origin.parse().ok())
                .is_some_and(|((filter, topic), origin)| filter.pattern.touches(&topic) && filter.is_from(&origin))
        };
        let behind = |group: &api::Group| {
            group.positions.iter().any(|p| {
                let of_topic = p.position.as_ref().filter(|at| at.topic == topic && at.origin == origin);
                of_topic.and_then(|at| at.place).is_some_and(|place| place.offset < p.end_offset)
            })
        };
        let groups = self.list("").await;
        groups.into_iter().filter(|g| covers(&g.name) && (g.members > 0 || behind(g))).map(|g| g.name).collect()
    }

    /// The groups (or the one that is named), each asked at the same time: one that is stuck hides no other.
    pub(crate) async fn described(&self, name: &str) -> Vec<Described> {
        let handles: Vec<_> = {
            let groups = self.groups.lock();
            let named = groups.iter().filter(|(n, _)| name.is_empty() || *n == name);
            named.map(|(n, handle)| (n.clone(), handle.commands.clone())).collect()
        };
        let ask = |(name, commands): (String, mpsc::Sender<Command>)| async move {
            let (answer, answered) = oneshot::channel();
            let told = async {
                commands.send(Command::Describe(answer)).await.ok()?;
                answered.await.ok()
            };
            match tokio::time::timeout(DESCRIBED_WITHIN, told).await {
                Ok(told) => told.map(Described::Told), // or it has ended
                Err(_) => Some(Described::Silent(name)),
            }
        };
        futures_util::future::join_all(handles.into_iter().map(ask)).await.into_iter().flatten().collect()
    }

    /// The same with members and positions; one that says nothing is shown as stalled.
    pub(crate) async fn list(&self, name: &str) -> Vec<api::Group> {
        self.described(name).await.into_iter().map(Described::into_group).collect()
    }
}

/// How long a group may take to say how it stands.
const DESCRIBED_WITHIN: Duration = Duration::from_secs(2);

/// What a group says of itself.
#[derive(Debug)]
pub(crate) enum Described {
    /// This.
    Told(api::Group),
    /// Nothing in time: the group of this name is stuck.
    Silent(String),
}

impl Described {
    /// The group's name.
    pub(crate) fn name(&self) -> &str {
        match self {
            Self::Told(group) => &group.name,
            Self::Silent(name) => name,
        }
    }

    fn into_group(self) -> api::Group {
        match self {
            Self::Told(group) => group,
            Self::Silent(name) => api::Group {
                name,
                state: api::TopicState::Stalled.into(),
                reason: format!("the group did not say within {} s how it stands", DESCRIBED_WITHIN.as_secs()),
                ..api::Group::default()
            },
        }
    }
}

fn start<E: Engine>(actor: Actor<E>) -> mpsc::Sender<Command> {
    let (commands, receiver) = mpsc::channel(COMMANDS_QUEUED_MAX);
    tokio::spawn(actor.run(receiver));
    commands
}

fn want_id(group: &str) -> String {
    format!("group-{group}")
}

/// Whether a group may be named so.
pub(crate) fn check_name(name: &str) -> Result<(), String> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.bytes().all(allowed) {
        let shown: String = name.chars().take(64).collect();
        let rule = format!("it must be 1 to {NAME_BYTES_MAX} of letters, digits, '.', '_' and '-'");
        return Err(format!("group {shown:?} is not allowed: {rule}"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use seaway_federation_proto::replication::WantStart;

    use super::*;
    use crate::{subscriptions::filter::Filter, testing::TestEngine};

    #[tokio::test]
    async fn a_group_that_is_stuck_hides_no_other() {
        let groups = Groups::open(TestEngine::new(), Duration::from_secs(60), CancellationToken::new()).unwrap();
        let (stuck, mut never_read) = mpsc::channel(1);
        let (well, mut commands) = mpsc::channel(1);
        tokio::spawn(async move {
            while let Some(command) = commands.recv().await {
                if let Command::Describe(answer) = command {
                    let _ = answer.send(api::Group { name: "well".into(), members: 1, ..Default::default() });
                }
            }
        });
        for (name, commands) in [("stuck", stuck), ("well", well)] {
            let filter = Filter { pattern: "#".parse().unwrap(), origins: Vec::new() };
            let definition = Definition { filter, start: WantStart::Earliest };
            groups.groups.lock().insert(name.to_owned(), Handle { definition, commands });
        }
        let listed = groups.list("").await;
        let seen: Vec<_> = listed.iter().map(|g| (g.name.as_str(), g.members, g.state())).collect();
        let unspecified = api::TopicState::Unspecified;
        assert_eq!(seen, [("stuck", 0, api::TopicState::Stalled), ("well", 1, unspecified)]);
        assert!(listed[0].reason.contains("did not say"), "{}", listed[0].reason);
        assert!(never_read.try_recv().is_ok(), "it was asked");
    }
}
