//! The text that ships with shrink: a file a kind, so that what a model is used for beside prose is calibrated on too.
//!
//! The prose is public-domain; all else was written for this purpose and is given to the public domain.

/// Old books: what the demo model was trained on too.
pub const PROSE: &str = include_str!("../../../../goldens/demo/calibration.txt");

/// Name and text of each kind.
pub const KINDS: [(&str, &str); 7] = [
    ("prose", PROSE),
    ("code", include_str!("builtin/code.txt")),
    ("data", include_str!("builtin/data.txt")),
    ("dialogue", include_str!("builtin/dialogue.txt")),
    ("languages", include_str!("builtin/languages.txt")),
    ("manuals", include_str!("builtin/manuals.txt")),
    ("mathematics", include_str!("builtin/mathematics.txt")),
];

/// What texts of many kinds begin with, a line each: a model goes on from there.
pub fn openings() -> impl Iterator<Item = &'static str> + Clone {
    include_str!("builtin/openings.txt").lines()
}

/// What users ask for, a line each.
pub fn requests() -> impl Iterator<Item = &'static str> + Clone {
    include_str!("builtin/requests.txt").lines()
}
