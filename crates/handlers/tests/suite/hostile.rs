//! Folders that are broken, foreign or made to harm: each is refused with the error that says so, and a hint.

mod config;
mod graphs;
mod links;
mod pointers;
mod quantised;
mod scalars;
mod section;
mod shards;
mod text;
mod weights;

/// Asserts that a result is the given error and that the error has a hint.
macro_rules! refuses {
    ($result:expr, $pattern:pat $(if $guard:expr)?) => {{
        let error = $result.err().expect("it is refused");
        assert!(error.hint().is_some_and(|hint| !hint.is_empty()), "no hint: {error}");
        match &error {
            $pattern $(if $guard)? => {}
            _ => panic!("another error than expected: {error:?}"),
        }
    }};
}
pub(crate) use refuses;
