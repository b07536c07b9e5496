//! What perplexity does not tell: whether a model still finds, copies and goes on as its donor does, in contexts of any length.
//!
//! Token ids in, shares out. The caller composes texts, and says of a continuation whether it is the answer.

mod agreement;
mod continuation;
mod copy;
mod draw;
mod needle;
mod retrieval;

pub use agreement::{Agreement, agreement, excerpts};
pub use continuation::sequences_at_once;
pub use copy::{Copied, Copies};
pub use draw::numbers;
pub use needle::{Found, Haystack, Passkeys};
pub use retrieval::{Asked, Lookups};
