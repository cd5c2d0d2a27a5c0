//! `/* pointsman: … */` comments.

use std::time::Duration;

use crate::route::Consistency;

/// What the comments of one statement ask for.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Hints {
    /// `primary`, `replica` or `node=host:port`.
    pub target: Option<Target>,
    pub max_lag: Option<Duration>,
    pub consistency: Option<Consistency>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    Primary,
    Replica,
    Node(Box<str>),
}
