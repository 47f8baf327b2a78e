//! How a command ends.

use std::{fmt, process::ExitCode};

use tonic::{Code, Status};

/// How a command ended; the numbers are the process's exit codes and permanent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Done as asked.
    Done = 0,
    /// Failed.
    Failed = 1,
    /// Not understood.
    Usage = 2,
    /// Done, but with less than was asked for.
    Degraded = 3,
    /// The time was over.
    TimedOut = 4,
    /// A right is missing, or a limit is reached.
    Refused = 5,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(exit as u8)
    }
}

/// Why a command did not end well: one sentence, and the exit code.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CliError {
    exit: Exit,
    text: String,
    broken_pipe: bool,
}

impl CliError {
    /// An error that ends with `exit`.
    pub fn new(exit: Exit, text: impl Into<String>) -> Self {
        Self { exit, text: text.into(), broken_pipe: false }
    }

    /// Something failed.
    pub fn failed(text: impl Into<String>) -> Self {
        Self::new(Exit::Failed, text)
    }

    /// The command was not understood.
    pub fn usage(text: impl Into<String>) -> Self {
        Self::new(Exit::Usage, text)
    }

    /// Writing to standard output failed; a reader that went away (`| head`) is no error to speak of.
    pub fn write(error: &std::io::Error) -> Self {
        let broken_pipe = error.kind() == std::io::ErrorKind::BrokenPipe;
        Self {
            exit: if broken_pipe { Exit::Done } else { Exit::Failed },
            text: format!("cannot write: {error}"),
            broken_pipe,
        }
    }

    /// The exit code.
    pub fn exit(&self) -> Exit {
        self.exit
    }

    /// Whether standard output was closed by its reader.
    pub fn is_broken_pipe(&self) -> bool {
        self.broken_pipe
    }
}

impl fmt::Display for CliError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl From<Status> for CliError {
    fn from(status: Status) -> Self {
        let exit = match status.code() {
            Code::PermissionDenied | Code::Unauthenticated | Code::ResourceExhausted | Code::Unimplemented => {
                Exit::Refused
            }
            Code::DeadlineExceeded => Exit::TimedOut,
            _ => Exit::Failed,
        };
        let text = match (status.code(), status.message()) {
            (Code::Unavailable | Code::Unknown, text) if text.is_empty() || text.contains("transport error") => {
                connection_lost(&std::error::Error::source(&status).map(deepest).unwrap_or_default())
            }
            (_, text) if text.ends_with("http2 error") => {
                "the server does not speak HTTP/2 there; where a door speaks TLS, write https:// and give --tls-ca"
                    .into()
            }
            (_, text) if text.starts_with("h2 protocol error") || text.contains("error reading a body") => {
                connection_lost(&std::error::Error::source(&status).map(deepest).unwrap_or_default())
            }
            // So ends a connection that the server gave up right after the handshake.
            (Code::Cancelled | Code::Unknown | Code::Unavailable, text) if text.contains("operation was canceled") => {
                "the connection to the server was lost before it answered; check the server".into()
            }
            (Code::Unimplemented, "") => {
                "the server has no such service; a relay shows its status, and clients publish and subscribe at an edge"
                    .into()
            }
            (_, "") => format!("the server answered {:?}", status.code()),
            (_, text) => text.to_string(),
        };
        Self::new(exit, text)
    }
}

fn connection_lost(cause: &str) -> String {
    // rustls names a page of its manual, for programmers.
    let cause = cause.split_once(": https://docs.rs").map_or(cause, |(cause, _)| cause);
    if cause.contains("fatal alert") {
        return format!("the server refused the connection ({cause}); its log says why");
    }
    format!("the connection to the server was lost ({cause}); check the server, and whether its door wants https://")
}

/// The innermost cause of an error, which says most.
pub(crate) fn deepest(error: &dyn std::error::Error) -> String {
    let mut at = error;
    while let Some(inner) = at.source() {
        at = inner;
    }
    at.to_string()
}
