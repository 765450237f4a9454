//! Places where the fault tests make a process die, stall or break a rule on purpose.
//!
//! Without the feature `dev`, as in the container image, all of this is nothing. With it, the
//! variable `FAILPOINTS` says what happens where, in the syntax of the `fail` crate:
//! `fetched=137*off->1*return` has the process killed the 138th time it has fetched an object.

/// The places on an item's way where a crash leaves another state behind, in their order.
pub const CRASHES: [&str; 12] = [
    "consumed",
    "looked-up",
    "fetched",
    "decoded",
    "scored",
    "row-inserted",
    "row-durable",
    "output-staged",
    "transaction-begun",
    "outputs-produced",
    "offsets-sent",
    "transaction-committed",
];

/// The places in a retraining run where a crash leaves another state behind, in their order.
pub const RETRAIN_CRASHES: [&str; 7] = [
    "photos-placed",
    "dataset-planned",
    "step-taken",
    "challenger-trained",
    "challenger-judged",
    "challenger-published",
    "challenger-promoted",
];

/// Rules that the promise rests on. Each can be taken away, to show that the tests notice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// What was begun under an assignment that has ended no longer counts.
    Epoch,
    /// Rows are written in the order of their ids.
    Sort,
    /// An item whose row exists still gets its output.
    Reemit,
    /// After a producer was replaced, committed offsets say what became of its last transaction.
    Compare,
    /// A revocation returns only once its partitions can no longer be committed.
    Revoke,
}

impl Rule {
    /// The failpoint that takes the rule away when set to `return`.
    pub fn failpoint(self) -> &'static str {
        match self {
            Self::Epoch => "rule-epoch",
            Self::Sort => "rule-sort",
            Self::Reemit => "rule-reemit",
            Self::Compare => "rule-compare",
            Self::Revoke => "rule-revoke",
        }
    }

    /// Whether the rule is in force, which it always is without the feature `dev`.
    pub fn holds(self) -> bool {
        #[cfg(feature = "dev")]
        fail::fail_point!(self.failpoint(), |_| false);
        true
    }
}

/// Marks one of [`CRASHES`] or [`RETRAIN_CRASHES`]: with the action `return`, the process ends here as by SIGKILL.
pub(crate) fn reach(name: &'static str) {
    #[cfg(feature = "dev")]
    {
        debug_assert!(CRASHES.contains(&name) || RETRAIN_CRASHES.contains(&name), "{name} is not listed");
        fail::fail_point!(name, |_| die(name));
    }
    #[cfg(not(feature = "dev"))]
    let _ = name;
}

/// [`reach`] once for each of `items`, where many come to the same place together: then the action
/// counts items there too.
pub(crate) fn reach_each(name: &'static str, items: usize) {
    for _ in 0..items {
        reach(name);
    }
}

/// As if the machine had lost its power: no destructor, no buffer and no hook runs.
#[cfg(feature = "dev")]
fn die(name: &str) {
    use std::io::Write;
    let mut stderr = std::io::stderr().lock();
    // Whoever reads the log learns where; the process ends either way.
    let _ = writeln!(stderr, "failpoint {name}: the process kills itself");
    let _ = stderr.flush();
    // SAFETY: raising a signal touches no memory of this process.
    unsafe { libc::raise(libc::SIGKILL) };
}
