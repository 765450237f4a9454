//! What a row of the fault matrix is.

use crate::run::Run;
use anyhow::Result;
use roc4mllm::failpoint::Rule;

/// Where a row's workers find Kafka.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broker {
    /// Apache Kafka, directly. Such rows run two at a time.
    Apache,
    /// Apache Kafka through [`crate::proxy::frames::FrameProxy`]; one row at a time.
    Proxy,
}

impl Broker {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Apache => "apache",
            Self::Proxy => "proxy",
        }
    }
}

/// One row: a fault, how to bring it about, and what is expected of the workers.
#[derive(Clone)]
pub struct Row {
    pub number: u32,
    pub fault: &'static str,
    pub broker: Broker,
    /// How many different runs it has. Run `n`, counted from 1, is variant `(n - 1) % variants`.
    pub variants: u64,
    /// The runs of it that `cargo test` has; none if it takes too long.
    pub short: &'static [u64],
    /// The rules whose absence it notices, in every run or in those of one variant.
    pub notices: Vec<(Rule, Option<u64>)>,
    /// Loads, injects and makes its claims. The oracle's verdict follows by itself.
    pub run: fn(&mut Run) -> Result<()>,
}

impl Row {
    pub fn new(number: u32, fault: &'static str, broker: Broker, run: fn(&mut Run) -> Result<()>) -> Self {
        Self { number, fault, broker, variants: 1, short: &[], notices: Vec::new(), run }
    }

    #[must_use]
    pub fn variants(mut self, variants: u64) -> Self {
        self.variants = variants;
        self
    }

    #[must_use]
    pub fn short(mut self, seeds: &'static [u64]) -> Self {
        self.short = seeds;
        self
    }

    #[must_use]
    pub fn notices(mut self, rule: Rule) -> Self {
        self.notices.push((rule, None));
        self
    }

    /// Notices the rule's absence in the runs of one variant, counted from 0.
    #[must_use]
    pub fn notices_in(mut self, variant: u64, rule: Rule) -> Self {
        self.notices.push((rule, Some(variant)));
        self
    }

    /// Which variant run `seed` is, from 0.
    pub fn variant(&self, seed: u64) -> u64 {
        (seed - 1) % self.variants
    }

    /// Whether run `seed` has to find something wrong without `rule`.
    pub fn must_notice(&self, rule: Rule, seed: u64) -> bool {
        let variant = self.variant(seed);
        self.notices.iter().any(|(noticed, only)| *noticed == rule && only.is_none_or(|only| only == variant))
    }
}
