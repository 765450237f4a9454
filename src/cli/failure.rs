//! How a command ends that could not do what it was asked.

/// Usage, configuration, or nothing to work on.
const USAGE: u8 = 2;

/// A command's failure: one line for people, one number for scripts.
pub struct Failure {
    error: anyhow::Error,
    /// The process's exit status.
    pub exit_code: u8,
}

impl Failure {
    /// The error with those of its causes that it does not name itself, on one line.
    pub fn message(&self) -> String {
        let mut message = String::new();
        for cause in self.error.chain().map(ToString::to_string) {
            if message.is_empty() {
                message = cause;
            } else if !message.contains(&cause) {
                message = format!("{message}: {cause}");
            }
        }
        message.replace('\n', " ")
    }

    pub fn new(exit_code: u8, error: impl Into<anyhow::Error>) -> Self {
        Self { error: error.into(), exit_code }
    }

    pub fn usage(error: impl Into<anyhow::Error>) -> Self {
        Self::new(USAGE, error)
    }
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::new(1, error)
    }
}
