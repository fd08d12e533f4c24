//! What a request can be answered with instead of success.

use std::io;

use ttrpc::Code;

/// A refusal or a failure: which kind, the sentence, and what caused it.
#[derive(Debug, thiserror::Error)]
#[error("{text}")]
pub(crate) struct Failure {
    code: Code,
    text: String,
    source: Option<io::Error>,
}

/// The agent's results.
pub(crate) type Result<T> = std::result::Result<T, Failure>;

impl Failure {
    fn new(code: Code, text: impl Into<String>) -> Self {
        Self {
            code,
            text: text.into(),
            source: None,
        }
    }

    /// What was named does not exist.
    pub(crate) fn not_found(text: impl Into<String>) -> Self {
        Self::new(Code::NOT_FOUND, text)
    }

    /// The name is taken.
    pub(crate) fn exists(text: impl Into<String>) -> Self {
        Self::new(Code::ALREADY_EXISTS, text)
    }

    /// Right in itself, wrong in the present state.
    pub(crate) fn state(text: impl Into<String>) -> Self {
        Self::new(Code::FAILED_PRECONDITION, text)
    }

    /// The request is wrong; the text names the field.
    pub(crate) fn argument(text: impl Into<String>) -> Self {
        Self::new(Code::INVALID_ARGUMENT, text)
    }

    /// The guest's kernel does not allow it.
    pub(crate) fn denied(text: impl Into<String>) -> Self {
        Self::new(Code::PERMISSION_DENIED, text)
    }

    /// Not something that the agent can do.
    pub(crate) fn unsupported(text: impl Into<String>) -> Self {
        Self::new(Code::UNIMPLEMENTED, text)
    }

    /// An act that the system refused.
    pub(crate) fn os(act: impl Into<String>, source: impl Into<io::Error>) -> Self {
        Self {
            code: Code::INTERNAL,
            text: act.into(),
            source: Some(source.into()),
        }
    }

    /// A failure without a cause of its own.
    pub(crate) fn internal(text: impl Into<String>) -> Self {
        Self::new(Code::INTERNAL, text)
    }
}

impl From<Failure> for ttrpc::Error {
    fn from(error: Failure) -> Self {
        let text = protocol::error::chain(&error);
        Self::RpcStatus(ttrpc::get_status(error.code, text))
    }
}

/// Turns a system's error into an [`Failure`] that says what was tried.
pub(crate) trait Attempt<T> {
    /// Names the act, and in it the object.
    fn attempt(self, act: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E: Into<io::Error>> Attempt<T> for std::result::Result<T, E> {
    fn attempt(self, act: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|source| Failure::os(act(), source))
    }
}
