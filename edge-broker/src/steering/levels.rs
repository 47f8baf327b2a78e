//! What the node logs: as configured, and for a limited time more or less of some part of the program.
//!
//! A level that was raised falls back by itself: nobody fills a disk by forgetting it. Levels are by target, which is a
//! part of the program as log lines name it (`seaway_relay::link`); one that no part of the program can have is refused, for it would
//! change nothing and look as if it did. What steers the node is logged whatever is set: on a relay these lines are the audit trail.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tracing_subscriber::{EnvFilter, filter::LevelFilter};

use crate::api;

/// Longest time for which a level can be set.
pub(crate) const RAISED_TIME_MAX: Duration = Duration::from_secs(24 * 3600);
/// Targets whose level is set at one time.
const RAISED_MAX: usize = 32;
/// Longest target, bytes.
const TARGET_BYTES_MAX: usize = 128;
/// What the program is made of, as far as it logs.
const PARTS: [&str; 16] = [
    "seaway",
    "seaway_relay",
    "seaway_edge_broker",
    "seaway_federation_proto",
    "quinn",
    "quinn_proto",
    "quinn_udp",
    "rustls",
    "tokio_rustls",
    "tonic",
    "h2",
    "hyper",
    "hyper_util",
    "tower",
    "tokio",
    "mio",
];

/// The target of the audit trail's lines.
pub(crate) const AUDIT: &str = "seaway::audit";

/// Takes a filter into use.
type Use = Box<dyn Fn(EnvFilter) -> Result<(), String> + Send + Sync>;

/// See the module's documentation.
pub(crate) struct Levels {
    state: Mutex<State>,
    take: Use,
}

struct State {
    configured: String,
    raised: BTreeMap<String, Raised>,
}

#[derive(Clone)]
struct Raised {
    level: String,
    until: Instant,
    by: String,
}

impl Levels {
    /// As configured, which is in use already.
    pub(crate) fn new(configured: &str, take: Use) -> Arc<Self> {
        let state = State { configured: configured.to_owned(), raised: BTreeMap::new() };
        Arc::new(Self { state: Mutex::new(state), take })
    }

    /// Sets the level of a target (empty: of everything) for a time. Must be called within a tokio runtime.
    pub(crate) fn raise(this: &Arc<Self>, target: &str, level: &str, time: Duration, by: &str) -> Result<(), String> {
        check_target(target)?;
        if level.parse::<LevelFilter>().is_err() {
            return Err(format!("{level:?} is no level: error, warn, info, debug, trace or off"));
        }
        if target.is_empty() && level.eq_ignore_ascii_case("off") {
            return Err("all of the log cannot be switched off; set error, or name a part of the program".to_owned());
        }
        if time.is_zero() || time > RAISED_TIME_MAX {
            return Err(
                "a level is set for a limited time of up to 24 hours; give it with --for, such as 10m".to_owned()
            );
        }
        {
            let mut state = this.state.lock();
            if state.raised.len() >= RAISED_MAX && !state.raised.contains_key(target) {
                return Err(format!("the levels of {RAISED_MAX} targets are set already; reset one first"));
            }
            let mut raised = state.raised.clone();
            let one = Raised { level: level.to_ascii_lowercase(), until: Instant::now() + time, by: by.to_owned() };
            raised.insert(target.to_owned(), one);
            this.use_now(&state.configured, &raised)?;
            state.raised = raised;
        }
        tracing::info!(target_set = target, level, ?time, by, "a log level is set");
        let later = this.clone();
        tokio::spawn(async move {
            tokio::time::sleep(time).await;
            later.expire(Instant::now());
        });
        Ok(())
    }

    /// Lets a target's level (empty: all of them) fall back to what is configured.
    pub(crate) fn fall_back(&self, target: &str) -> Result<(), String> {
        let mut state = self.state.lock();
        let mut raised = state.raised.clone();
        if target.is_empty() {
            raised.clear();
        } else if raised.remove(target).is_none() {
            return Err(format!("the level of {target} is not set; `seaway debug level` shows those that are"));
        }
        self.use_now(&state.configured, &raised)?;
        state.raised = raised;
        Ok(())
    }

    /// Another configured filter, which was checked; what was raised stays.
    pub(crate) fn configure(&self, configured: &str) -> Result<(), String> {
        let mut state = self.state.lock();
        self.use_now(configured, &state.raised)?;
        configured.clone_into(&mut state.configured);
        Ok(())
    }

    /// What holds.
    pub(crate) fn show(&self) -> api::LogLevels {
        let (state, now) = (self.state.lock(), Instant::now());
        let left = |until: Instant| u64::try_from(until.saturating_duration_since(now).as_millis()).unwrap_or(u64::MAX);
        let raised = state.raised.iter().map(|(target, one)| api::LogLevel {
            target: target.clone(),
            level: one.level.clone(),
            left_ms: left(one.until),
            by: one.by.clone(),
        });
        api::LogLevels { configured: state.configured.clone(), raised: raised.collect() }
    }

    /// Lets those fall back whose time is over.
    fn expire(&self, now: Instant) {
        let mut state = self.state.lock();
        let mut raised = state.raised.clone();
        raised.retain(|_, one| one.until > now);
        if raised.len() == state.raised.len() {
            return;
        }
        match self.use_now(&state.configured, &raised) {
            Ok(()) => {
                state.raised = raised;
                drop(state);
                tracing::info!("a log level that was set for a time has fallen back to what is configured");
            }
            Err(error) => tracing::error!("the log level that was set could not fall back: {error}"),
        }
    }

    fn use_now(&self, configured: &str, raised: &BTreeMap<String, Raised>) -> Result<(), String> {
        let text = directives(configured, raised);
        (self.take)(filter(&text).map_err(|error| format!("{text:?} is not understood: {error}"))?)
    }
}

/// A filter that lets through what these directives do, and the audit trail always.
///
/// # Errors
/// The directives are not understood, or speak of the audit trail.
pub(crate) fn filter(text: &str) -> Result<EnvFilter, String> {
    if text.to_ascii_lowercase().contains(AUDIT) {
        return Err(format!("the audit trail, {AUDIT}, is always logged and has no level of its own"));
    }
    // For the same target the last counts, and of several targets the longest.
    EnvFilter::try_new(format!("{text},{AUDIT}=info")).map_err(|error| error.to_string())
}

/// Later directives count over earlier ones for the same target, and longer targets over shorter ones.
fn directives(configured: &str, raised: &BTreeMap<String, Raised>) -> String {
    let mut text = configured.to_owned();
    for (target, one) in raised {
        let separator = if target.is_empty() { "" } else { "=" };
        text.push_str(&format!(",{target}{separator}{}", one.level));
    }
    text
}

fn check_target(target: &str) -> Result<(), String> {
    if target.is_empty() {
        return Ok(());
    }
    if target.to_ascii_lowercase().starts_with(AUDIT) {
        return Err(format!("{target} is the audit trail, which is always logged"));
    }
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b':';
    let root = target.split("::").next().unwrap_or_default();
    if target.len() > TARGET_BYTES_MAX
        || !target.bytes().all(allowed)
        || target.split("::").any(|part| part.is_empty() || part.contains(':'))
    {
        return Err(format!(
            "{target:.80?} is no part of the program; write it as the log does, such as seaway_relay::link"
        ));
    }
    if PARTS.contains(&root) {
        return Ok(());
    }
    let near =
        PARTS.iter().min_by_key(|part| strsim::damerau_levenshtein(root, part)).copied().unwrap_or("seaway_relay");
    Err(format!("no part of the program is called {root:?}; did you mean {near:?}?"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn levels() -> (Arc<Levels>, Arc<Mutex<Vec<String>>>) {
        let used: Arc<Mutex<Vec<String>>> = Arc::default();
        let into = used.clone();
        let take = move |filter: EnvFilter| {
            into.lock().push(filter.to_string());
            Ok(())
        };
        (Levels::new("info", Box::new(take)), used)
    }

    /// The directives in use, in order.
    fn last(used: &Mutex<Vec<String>>) -> Vec<String> {
        let mut directives: Vec<String> = used.lock().last().unwrap().split(',').map(str::to_owned).collect();
        directives.sort();
        directives
    }

    /// Which of these targets are logged under a filter.
    fn logged(filter: EnvFilter) -> Vec<&'static str> {
        #[derive(Clone, Default)]
        struct Lines(Arc<Mutex<Vec<u8>>>);
        impl std::io::Write for Lines {
            fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
                self.0.lock().extend(line);
                Ok(line.len())
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        let lines = Lines::default();
        let into = lines.clone();
        let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_writer(move || into.clone()).finish();
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!(target: "seaway::audit", who = "me", "recorded");
            tracing::error!(target: "seaway_relay::link", "broken");
        });
        let text = String::from_utf8(lines.0.lock().clone()).unwrap();
        ["recorded", "broken"].into_iter().filter(|word| text.contains(word)).collect()
    }

    #[tokio::test]
    async fn no_level_switches_the_audit_trail_off() {
        for text in ["off", "seaway=off,off", "info,seaway_relay=off", "off,[{who}]=off"] {
            assert_eq!(logged(filter(text).unwrap()), ["recorded"], "{text}");
        }
        assert_eq!(logged(filter("error").unwrap()), ["recorded", "broken"]);
        for text in ["info,seaway::audit=off", "info,Seaway::Audit=off", "seaway::audit[{who}]=off"] {
            assert!(filter(text).unwrap_err().contains("always logged"), "{text}");
        }
    }

    #[tokio::test]
    async fn a_level_falls_back_by_itself() {
        let (levels, used) = levels();
        Levels::raise(&levels, "seaway_relay::link", "debug", Duration::from_millis(10), "client:me").unwrap();
        let shown = levels.show();
        assert_eq!((shown.configured.as_str(), shown.raised.len()), ("info", 1));
        assert_eq!((shown.raised[0].level.as_str(), shown.raised[0].by.as_str()), ("debug", "client:me"));
        assert!(used.lock().last().unwrap().contains("seaway_relay::link=debug"));
        crate::testing::soon("the fall", async {
            while !levels.show().raised.is_empty() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
        assert_eq!(last(&used), ["info", "seaway::audit=info"]);
    }

    #[tokio::test]
    async fn nonsense_is_refused_and_changes_nothing() {
        let (levels, used) = levels();
        let minute = Duration::from_secs(60);
        for (target, level, time, says) in [
            ("seaway_reley", "debug", minute, "did you mean \"seaway_relay\"?"),
            ("seaway_relay::", "debug", minute, "no part of the program"),
            ("a b", "debug", minute, "no part of the program"),
            ("seaway_relay=info,x", "debug", minute, "no part of the program"),
            ("seaway::audit", "off", minute, "always logged"),
            ("seaway::audit::more", "off", minute, "always logged"),
            ("", "off", minute, "cannot be switched off"),
            ("", "OFF", minute, "cannot be switched off"),
            ("seaway_relay", "loud", minute, "\"loud\" is no level"),
            ("seaway_relay", "debug", Duration::ZERO, "--for"),
            ("seaway_relay", "debug", minute * 60 * 25, "24 hours"),
        ] {
            let error = Levels::raise(&levels, target, level, time, "x").unwrap_err();
            assert!(error.contains(says), "{error}");
        }
        assert!(levels.fall_back("seaway_relay").is_err());
        assert!(used.lock().is_empty() && levels.show().raised.is_empty());
        for number in 0..RAISED_MAX {
            Levels::raise(&levels, &format!("seaway_relay::m{number}"), "debug", minute, "x").unwrap();
        }
        assert!(Levels::raise(&levels, "seaway_relay::more", "debug", minute, "x").is_err());
        Levels::raise(&levels, "seaway_relay::m3", "trace", minute, "x").unwrap();
        levels.fall_back("").unwrap();
        assert_eq!(last(&used), ["info", "seaway::audit=info"]);
    }

    #[tokio::test]
    async fn everything_can_be_raised_and_another_configuration_keeps_what_is_raised() {
        let (levels, used) = levels();
        Levels::raise(&levels, "", "debug", Duration::from_secs(60), "x").unwrap();
        assert_eq!(last(&used), ["debug", "seaway::audit=info"]);
        levels.configure("warn,h2=off").unwrap();
        let last = used.lock().last().unwrap().clone();
        assert!(last.contains("debug") && last.contains("h2=off") && !last.contains("warn"), "{last}");
    }
}
