//! What may be written on the command line.

use std::{path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand, ValueEnum};

/// A cross-region relay and federation service for messages.
#[derive(Debug, Parser)]
#[command(name = "seaway", version, propagate_version = true, max_term_width = 110)]
#[command(
    after_help = "Exit codes: 0 done, 1 failed, 2 wrong usage, 3 done but degraded, 4 timed out, 5 refused (rights, limits)."
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
#[allow(clippy::large_enum_variant, reason = "one is made in the life of a process")]
pub(crate) enum Command {
    /// Run an edge broker in the foreground; SIGTERM drains and stops it.
    Edge(NodeArgs),
    /// Run a relay in the foreground; SIGTERM drains and stops it.
    Relay(NodeArgs),
    /// Publish messages: arguments, a file, or standard input, a message a line.
    Pub(PubArgs),
    /// Subscribe to standard output.
    Sub(SubArgs),
    /// Show a node: its links, topics, alarms and figures.
    Status(ListArgs),
    /// Links of a node.
    #[command(subcommand)]
    Link(LinkCommand),
    /// Short for `link ls`.
    #[command(hide = true)]
    Links(ListArgs),
    /// Topics that a node holds.
    #[command(subcommand)]
    Topic(TopicCommand),
    /// Short for `topic ls`.
    #[command(hide = true)]
    Topics(ListArgs),
    /// Durable subscriptions.
    #[command(subcommand)]
    Group(GroupCommand),
    /// Short for `group ls`.
    #[command(hide = true)]
    Groups(ListArgs),
    /// Sites of the federation.
    #[command(subcommand)]
    Site(SiteCommand),
    /// Short for `site ls`.
    #[command(hide = true)]
    Sites(ListArgs),
    /// Rates of topics, links and clients.
    #[command(subcommand)]
    Limit(super::limits::LimitCommand),
    /// Short for `limit ls`.
    #[command(hide = true)]
    Limits(ListArgs),
    /// Every queue and buffer of a node: its bound, what it holds, what happens at the bound.
    Queues(ListArgs),
    /// Ask every site where a message is.
    Find(FindArgs),
    /// Nodes and links of the federation, as a node knows them.
    Topology(ListArgs),
    /// Ways through the federation.
    #[command(subcommand)]
    Route(RouteCommand),
    /// Tokens that clients show.
    #[command(subcommand)]
    Token(TokenCommand),
    /// Short for `token ls`.
    #[command(hide = true)]
    Tokens(ListArgs),
    /// A private authority for those who have none.
    #[command(subcommand)]
    Ca(CaCommand),
    /// Take a node out of use: it takes no new messages, is not ready, and carries nothing that can go another way.
    Drain(DrainArgs),
    /// Look closer at a running node.
    #[command(subcommand)]
    Debug(DebugCommand),
    /// Check or show a configuration, or let a node read its own anew.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Look into the data directory of a stopped node.
    #[command(subcommand)]
    Log(LogCommand),
    /// What a node's admin port tells Prometheus.
    #[command(subcommand)]
    Metrics(MetricsCommand),
    /// Measure on this machine.
    #[command(subcommand)]
    Bench(BenchCommand),
    /// Write a completion script for a shell to standard output.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

/// How lists are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// Columns, for people.
    Table,
    /// For programs.
    Json,
}

#[derive(Debug, Args)]
pub(crate) struct NodeArgs {
    /// The configuration file.
    #[arg(long, value_name = "FILE")]
    pub(crate) config: PathBuf,
    /// Overrides a key of the file and of the environment.
    #[arg(long, value_name = "SECTION.KEY=VALUE")]
    pub(crate) set: Vec<String>,
}

/// Which server, and who we are there.
#[derive(Debug, Args)]
pub(crate) struct Connection {
    /// The edge broker's door; several, separated by commas, are tried in order.
    #[arg(
        long,
        value_name = "URL",
        env = "SEAWAY_SERVER",
        value_delimiter = ',',
        default_value = "http://127.0.0.1:7500"
    )]
    pub(crate) server: Vec<String>,
    /// Authorities that the server's certificate may come from, PEM.
    #[arg(long, value_name = "FILE")]
    pub(crate) tls_ca: Option<PathBuf>,
    /// Our certificate, PEM.
    #[arg(long, value_name = "FILE")]
    pub(crate) cert: Option<PathBuf>,
    /// A file that holds our token.
    #[arg(long, value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct ClientArgs {
    #[command(flatten)]
    pub(crate) connection: Connection,
    /// The private key of our certificate, PEM.
    #[arg(long = "key", alias = "tls-key", value_name = "FILE", requires = "cert")]
    pub(crate) tls_key: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct ListArgs {
    #[command(flatten)]
    pub(crate) client: ClientArgs,
    /// How to print.
    #[arg(long, value_enum, default_value = "table")]
    pub(crate) output: Output,
}

#[derive(Debug, Args)]
pub(crate) struct NamedListArgs {
    /// Its name.
    pub(crate) name: String,
    #[command(flatten)]
    pub(crate) list: ListArgs,
}

#[derive(Debug, Args)]
pub(crate) struct NamedArgs {
    /// Its name.
    pub(crate) name: String,
    #[command(flatten)]
    pub(crate) list: ListArgs,
}

#[derive(Debug, Subcommand)]
pub(crate) enum LinkCommand {
    /// State, round-trip time, loss and rates of each link.
    Ls(ListArgs),
    /// Close the link with a peer and keep it closed, until it is resumed or the node restarts. What it carried takes another way,
    /// or waits.
    Pause(PeerArgs),
    /// Let a paused link come up again.
    Resume(PeerArgs),
}

#[derive(Debug, Args)]
pub(crate) struct PeerArgs {
    /// The peer, as `link ls` shows it.
    #[arg(value_name = "SITE/NODE")]
    pub(crate) peer: String,
    #[command(flatten)]
    pub(crate) list: ListArgs,
}

#[derive(Debug, Args)]
pub(crate) struct DrainArgs {
    /// Take the node into use again.
    #[arg(long)]
    pub(crate) undo: bool,
    /// Wait so long for messages that wait for other sites; with exit code 4 where some still do then.
    #[arg(long, value_name = "D", value_parser = duration, conflicts_with = "undo")]
    pub(crate) wait: Option<Duration>,
    #[command(flatten)]
    pub(crate) list: ListArgs,
}

#[derive(Debug, Subcommand)]
pub(crate) enum DebugCommand {
    /// Set what the node logs for a limited time; without arguments, show what holds.
    Level(LevelArgs),
}

#[derive(Debug, Args)]
pub(crate) struct LevelArgs {
    /// error, warn, info, debug, trace or off; for a part of the program such as seaway_relay::link, or for all of it.
    #[arg(value_name = "[TARGET=]LEVEL")]
    pub(crate) level: Option<String>,
    /// For how long; then it falls back by itself.
    #[arg(long = "for", value_name = "D", value_parser = duration, default_value = "10m")]
    pub(crate) time: Duration,
    /// Falls back at once: of one target, or of all that are set.
    #[arg(long, value_name = "TARGET", num_args = 0..=1, default_missing_value = "", conflicts_with = "level")]
    pub(crate) reset: Option<String>,
    #[command(flatten)]
    pub(crate) list: ListArgs,
}

#[derive(Debug, Subcommand)]
pub(crate) enum TopicCommand {
    /// End and lag of each topic and origin.
    Ls(ListArgs),
    /// The settings of one topic and where they come from, and its queues: begin, end, the origin's end, holes.
    Show(NamedListArgs),
    /// Create a topic of this site, or create one anew that was deleted.
    Create(super::topics::TopicCreateArgs),
    /// Change settings of a topic, live.
    Set(super::topics::TopicSetArgs),
    /// Give up the oldest messages of a topic at this site.
    Trim(super::topics::TopicTrimArgs),
    /// Give up what this site's copies wait for and nobody who can be reached gives: stated as lost at once.
    Skip(super::topics::TopicSkipArgs),
    /// Delete a topic of this site, here and at every site that holds it.
    Rm(super::topics::TopicRemoveArgs),
}

#[derive(Debug, Subcommand)]
pub(crate) enum GroupCommand {
    /// Groups with their lag.
    Ls(ListArgs),
    /// The positions of one group.
    Show(NamedListArgs),
    /// Delete a group and its positions.
    Rm(NamedArgs),
}

#[derive(Debug, Subcommand)]
pub(crate) enum SiteCommand {
    /// Sites, the way to them, what they hold of this site's logs, and what is kept for them.
    Ls(ListArgs),
    /// Take a site out of the federation, for ever: first says what only that site is known to hold.
    Remove(SiteRemoveArgs),
}

#[derive(Debug, Args)]
pub(crate) struct SiteRemoveArgs {
    /// Its name, which is never used again.
    pub(crate) site: String,
    /// Do it.
    #[arg(long)]
    pub(crate) yes: bool,
    #[command(flatten)]
    pub(crate) list: ListArgs,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Exit codes: 0 some site has it, 1 none has, 4 not every site answered in time or could be asked. A message's id is what \
    `pub --receipts` and `sub --output json` print as its position."
)]
pub(crate) struct FindArgs {
    /// The message's id: TOPIC@SITE#QUEUE=COUNTER.RANDOM:OFFSET.
    #[arg(value_name = "MESSAGE-ID")]
    pub(crate) message: String,
    /// How long to wait for answers, such as 10s (at most 30s); 3s if not given.
    #[arg(long, value_name = "D", value_parser = duration)]
    pub(crate) deadline: Option<Duration>,
    #[command(flatten)]
    pub(crate) client: ClientArgs,
    /// How to print.
    #[arg(long, value_enum, default_value = "table")]
    pub(crate) output: Output,
}

#[derive(Debug, Subcommand)]
pub(crate) enum RouteCommand {
    /// The way from one site to another, what each hop costs, and why no other is taken.
    Explain(ExplainArgs),
}

#[derive(Debug, Args)]
pub(crate) struct ExplainArgs {
    /// What is published: topic, or topic/tag/…
    pub(crate) path: String,
    /// The site that publishes.
    #[arg(long, value_name = "SITE")]
    pub(crate) from: String,
    /// The site that wants it.
    #[arg(long, value_name = "SITE")]
    pub(crate) to: String,
    #[command(flatten)]
    pub(crate) list: ListArgs,
}

#[derive(Debug, Subcommand)]
pub(crate) enum TokenCommand {
    /// Make a token and print it; it is shown this once.
    Create(TokenCreateArgs),
    /// Tokens with their rights.
    Ls(ListArgs),
    /// Make a token invalid.
    Revoke(NamedArgs),
}

#[derive(Debug, Args)]
pub(crate) struct TokenCreateArgs {
    /// The token's name.
    pub(crate) name: String,
    /// Paths that its bearer may publish to.
    #[arg(long, value_name = "PATTERN")]
    pub(crate) publish: Vec<String>,
    /// Patterns that its bearer may subscribe within.
    #[arg(long, value_name = "PATTERN")]
    pub(crate) subscribe: Vec<String>,
    /// Its bearer may see and steer the node.
    #[arg(long)]
    pub(crate) admin: bool,
    /// How long it is valid, such as "90 days"; without it, until revoked.
    #[arg(long, value_name = "D", value_parser = duration)]
    pub(crate) expires_in: Option<Duration>,
    #[command(flatten)]
    pub(crate) list: ListArgs,
}

/// When the publisher's call ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Mode {
    /// Durable here and at the sites that --ack asks for.
    Sync,
    /// Receipts follow when durable here.
    Async,
    /// Handed to the network; nothing is stored.
    OneWay,
}

/// What happens when the sites asked for do not acknowledge in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum OnDeadline {
    /// Fail (exit code 4); the message stays stored.
    Fail,
    /// Go on with what was reached (exit code 3).
    Degrade,
}

/// How input is cut into messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Input {
    /// A message a line.
    Lines,
    /// All of it is one message.
    Whole,
    /// One JSON object a line, as `sub --output json` writes them.
    Json,
}

#[derive(Debug, Args)]
#[command(
    after_help = "A message that may have been stored is sent again only to the same site, under the same producer \
    number, so it is stored once. A retry at another site would be a new message: where something is in doubt and only \
    another site answers, pub stops and says so."
)]
pub(crate) struct PubArgs {
    /// Where to: topic, or topic/tag/… (with --input json it may be left out: each object names its own).
    #[arg(value_name = "PATH", required_unless_present = "input")]
    pub(crate) path: Option<String>,
    /// Messages; without any, --file or standard input.
    #[arg(value_name = "MESSAGE")]
    pub(crate) messages: Vec<String>,
    /// When a message counts as published.
    #[arg(long, value_enum, default_value = "sync")]
    pub(crate) mode: Mode,
    /// Which other sites must hold it (sync): local (none), all, a number of them, or sites=a,b.
    #[arg(long, value_name = "local|all|N|sites=a,b", default_value = "local")]
    pub(crate) ack: String,
    /// How long to wait for them, such as 5s; the node's own default if not given.
    #[arg(long, value_name = "D", value_parser = duration)]
    pub(crate) deadline: Option<Duration>,
    /// What happens then.
    #[arg(long, value_enum, default_value = "fail")]
    pub(crate) on_deadline: OnDeadline,
    /// Messages with one key keep their order.
    #[arg(long, value_name = "K")]
    pub(crate) key: Option<String>,
    /// A header; may be given several times.
    #[arg(long, value_name = "K=V")]
    pub(crate) header: Vec<String>,
    /// Reads messages from a file; - is standard input.
    #[arg(long, value_name = "F", conflicts_with = "messages")]
    pub(crate) file: Option<PathBuf>,
    /// A message a line (this is so unless told otherwise).
    #[arg(long, group = "cut", conflicts_with = "messages")]
    pub(crate) lines: bool,
    /// All input is one message.
    #[arg(long, group = "cut", conflicts_with = "messages")]
    pub(crate) whole: bool,
    /// What the input is; json is what `sub --output json` writes.
    #[arg(long, value_enum, group = "cut", value_name = "json", conflicts_with = "messages")]
    pub(crate) input: Option<Input>,
    /// Prints each receipt, a JSON object a line, in the order of the messages.
    #[arg(long)]
    pub(crate) receipts: bool,
    #[command(flatten)]
    pub(crate) connection: Connection,
    /// The private key of our certificate, PEM (--key is the message's key here).
    #[arg(long, value_name = "FILE", requires = "cert")]
    pub(crate) tls_key: Option<PathBuf>,
}

/// How messages are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum SubOutput {
    /// The payload, and a newline.
    Raw,
    /// One JSON object a line; binary payloads in base64.
    Json,
}

#[derive(Debug, Args)]
#[command(after_help = "In a shell, # begins a comment: write '#' or 'orders/#' in quotes.")]
pub(crate) struct SubArgs {
    /// Which paths: + is one level, a final # all levels from there on.
    // Missing, it is as good as empty: a bare # never reaches us, and the answer to an empty one says so.
    #[arg(default_value = "", hide_default_value = true)]
    pub(crate) pattern: String,
    /// A durable subscription of this name at this site: goes on where it was confirmed. A message is confirmed once written.
    /// It has no end, so not with --until-end.
    #[arg(long, value_name = "G")]
    pub(crate) group: Option<String>,
    /// Where to begin (a group: when it is new; after that it goes on where it was confirmed): earliest, latest (so
    /// unless told otherwise), a time (RFC 3339), or positions as `--output json` gives them (several times, or by commas).
    #[arg(long, value_name = "earliest|latest|TIME|POSITION", value_delimiter = ',', conflicts_with = "last")]
    pub(crate) from: Vec<String>,
    /// Begins so many messages before the end of each log.
    #[arg(long, value_name = "N", conflicts_with = "group")]
    pub(crate) last: Option<u64>,
    /// Only messages that were published at this site; may be given several times.
    #[arg(long, value_name = "SITE")]
    pub(crate) origin: Vec<String>,
    /// Ends after so many messages.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) count: Option<u64>,
    /// Ends when all that was there at the start is written; with exit code 1 where some of it could not be read now. Not with
    /// --group.
    #[arg(long, conflicts_with = "group")]
    pub(crate) until_end: bool,
    /// Ends after this time, with exit code 4.
    #[arg(long, value_name = "D", value_parser = duration)]
    pub(crate) timeout: Option<Duration>,
    /// How messages are written.
    #[arg(long, value_enum, default_value = "raw")]
    pub(crate) output: SubOutput,
    #[command(flatten)]
    pub(crate) client: ClientArgs,
}

#[derive(Debug, Subcommand)]
pub(crate) enum CaCommand {
    /// Make an authority: ca.pem and ca.key in a directory.
    Init {
        /// The authority's directory.
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
        /// The federation's name.
        #[arg(long)]
        federation: String,
        /// How long it is valid; ten years if not given.
        #[arg(long, value_name = "D", value_parser = duration)]
        lifetime: Option<Duration>,
    },
    /// Issue a node's certificate, for its links and its door: SITE-NODE.pem and .key.
    Issue {
        /// The node.
        #[arg(value_name = "SITE/NODE")]
        node: String,
        /// A DNS name or address under which clients reach its door; may be given several times.
        #[arg(long, value_name = "HOST")]
        host: Vec<String>,
        #[command(flatten)]
        issue: IssueArgs,
    },
    /// Issue a client's certificate: NAME.pem and NAME.key.
    Client {
        /// The client's name, which rights are given to.
        name: String,
        #[command(flatten)]
        issue: IssueArgs,
    },
}

#[derive(Debug, Args)]
pub(crate) struct IssueArgs {
    /// The authority's directory.
    #[arg(long, value_name = "DIR")]
    pub(crate) dir: PathBuf,
    /// Where the files go; the authority's directory if not given.
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
    /// How long it is valid; a year if not given.
    #[arg(long, value_name = "D", value_parser = duration)]
    pub(crate) lifetime: Option<Duration>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Read a configuration as the node would, and say what is wrong with it.
    Check(ConfigArgs),
    /// Let a running node read its configuration, certificates and tokens anew, as SIGHUP does: whole or not at all.
    Reload(ListArgs),
    /// Show what holds: file, environment, flags and defaults together.
    Show {
        #[command(flatten)]
        config: ConfigArgs,
        /// How to print: table is TOML here.
        #[arg(long, value_enum, default_value = "table")]
        output: Output,
    },
}

#[derive(Debug, Args)]
pub(crate) struct ConfigArgs {
    /// The configuration file.
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,
    /// Overrides a key of the file and of the environment.
    #[arg(long, value_name = "SECTION.KEY=VALUE")]
    pub(crate) set: Vec<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum LogCommand {
    /// Check every byte of every segment; exit code 1 if there is damage.
    Verify {
        /// The node's data directory; the node must be stopped.
        #[arg(value_name = "DIR")]
        data_dir: PathBuf,
        /// How to print.
        #[arg(long, value_enum, default_value = "table")]
        output: Output,
    },
    /// List what is stored, in the order of storage.
    Dump {
        /// The node's data directory; the node must be stopped.
        #[arg(value_name = "DIR")]
        data_dir: PathBuf,
        /// Only of this topic.
        #[arg(long)]
        topic: Option<String>,
        /// Only of this origin.
        #[arg(long, value_name = "SITE")]
        origin: Option<String>,
        /// Only in this segment.
        #[arg(long, value_name = "N")]
        segment: Option<u64>,
        /// Group writes, too.
        #[arg(long)]
        groups: bool,
        /// The messages of each batch, too, as JSON.
        #[arg(long)]
        messages: bool,
        /// How to print; json is an object a line.
        #[arg(long, value_enum, default_value = "table")]
        output: Output,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum MetricsCommand {
    /// Every metric: name, type, labels and what it tells.
    #[command(alias = "list")]
    Ls {
        /// How to print.
        #[arg(long, value_enum, default_value = "table")]
        output: Output,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum BenchCommand {
    /// The commit log, and plain sequential writes beside it with the same fdatasync policy.
    Log {
        /// How much is written for each figure, such as "1 GiB".
        #[arg(long, value_name = "SIZE", value_parser = size, default_value = "1 GiB")]
        size: u64,
        /// Which disk: a directory in it is made and removed.
        #[arg(long, value_name = "DIR")]
        dir: Option<PathBuf>,
        /// How to print.
        #[arg(long, value_enum, default_value = "table")]
        output: Output,
    },
    /// What the disk holds beside what lives: a busy topic kept for an hour beside a thin one kept for two days.
    Space {
        /// How much is written, twice, such as "1 GiB".
        #[arg(long, value_name = "SIZE", value_parser = size, default_value = "1 GiB")]
        size: u64,
        /// Which disk: a directory in it is made and removed.
        #[arg(long, value_name = "DIR")]
        dir: Option<PathBuf>,
        /// How to print.
        #[arg(long, value_enum, default_value = "table")]
        output: Output,
    },
    /// Two edge brokers, linked directly: published at one until durable at the other, over real processes.
    Federation {
        /// Sizes of messages to measure, of 100B, 1KiB and 64KiB; all of them unless told otherwise.
        #[arg(long, value_name = "SIZE", value_delimiter = ',', value_parser = bench_size)]
        size: Vec<(&'static str, usize)>,
        /// How long each figure is measured.
        #[arg(long, value_name = "D", value_parser = duration, default_value = "10s")]
        time: Duration,
        /// Where the nodes keep their data; a directory in it is made and removed.
        #[arg(long, value_name = "DIR")]
        dir: Option<PathBuf>,
        /// How to print.
        #[arg(long, value_enum, default_value = "table")]
        output: Output,
    },
    /// What an edge broker with many queues takes to be ready again after a stop, and after a kill: time and memory.
    Opening {
        /// How many queues, in hundreds.
        #[arg(long, value_name = "N", default_value = "50000", value_parser = clap::value_parser!(u32).range(1..=100_000))]
        queues: u32,
        /// Where the node keeps its data; a directory in it is made and removed.
        #[arg(long, value_name = "DIR")]
        dir: Option<PathBuf>,
        /// How to print.
        #[arg(long, value_enum, default_value = "table")]
        output: Output,
    },
    /// What an edge broker takes that has nothing to do: memory and CPU, with usual settings and with those for small devices.
    Idle {
        /// Where the nodes keep their data; a directory in it is made and removed.
        #[arg(long, value_name = "DIR")]
        dir: Option<PathBuf>,
        /// How to print.
        #[arg(long, value_enum, default_value = "table")]
        output: Output,
    },
    /// Messages of 100 B, published async, where each sync of the disk takes longer than it does here.
    SlowDisk {
        /// How much longer.
        #[arg(long, value_name = "D", value_parser = duration, default_value = "20ms")]
        sync: Duration,
        /// How long it is measured.
        #[arg(long, value_name = "D", value_parser = duration, default_value = "10s")]
        time: Duration,
        /// Where the node keeps its data; a directory in it is made and removed.
        #[arg(long, value_name = "DIR")]
        dir: Option<PathBuf>,
        /// How to print.
        #[arg(long, value_enum, default_value = "table")]
        output: Output,
    },
}

fn bench_size(text: &str) -> Result<(&'static str, usize), String> {
    use crate::bench::federation::SIZES;
    let found = SIZES.into_iter().find(|(name, _)| name.eq_ignore_ascii_case(text));
    found.ok_or_else(|| format!("is none of {}", SIZES.map(|(name, _)| name).join(", ")))
}

fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|e| format!("{e}; write it with its unit, such as 500ms or 5s"))
}

fn size(text: &str) -> Result<u64, String> {
    use crate::config::values::{FromText, Size};
    Size::from_text(text).map(|size| size.0).map_err(|e| format!("{e}; write it with its unit, such as 1GiB"))
}
