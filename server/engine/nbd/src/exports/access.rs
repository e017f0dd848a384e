//! Who may open an export, and how many connections that reserves.

use crate::backend::Client;

/// Who may see and open an export.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Access {
    #[default]
    Everybody,
    /// Clients of these names, as [`Client::name`] has them.
    Identities(Vec<String>),
}

impl Access {
    pub fn admits(&self, client: &Client) -> bool {
        match self {
            Access::Everybody => true,
            Access::Identities(names) => names.iter().any(|name| name == client.name()),
        }
    }
}

/// The connections reserved for clients that exports name, as the opening of one export sees them.
#[derive(Clone, Copy, Debug, Default)]
pub struct Claim {
    /// The export names its clients, and this one takes one of the connections reserved for them.
    pub own: bool,
    /// Connections reserved for clients of other exports.
    pub others: usize,
}
