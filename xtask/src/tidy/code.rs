//! Just enough of Rust's lexical grammar to look for words and paths in code, not in comments or strings.

/// The text with every comment, string and character literal blanked; lines and offsets stay (in characters).
pub fn code_only(text: &str) -> String {
    let source: Vec<char> = text.chars().collect();
    let mut code = String::with_capacity(text.len());
    let mut at = 0;
    while at < source.len() {
        let end = literal_or_comment(&source, at);
        match end {
            Some(end) => code.extend(source[at..end].iter().map(|&c| if c == '\n' { '\n' } else { ' ' })),
            None => code.push(source[at]),
        }
        at = end.unwrap_or(at + 1);
    }
    code
}

/// The end of the comment or literal that begins at `at`, if one does.
fn literal_or_comment(source: &[char], at: usize) -> Option<usize> {
    let next = source.get(at + 1).copied();
    match source[at] {
        '/' if next == Some('/') => Some(find(source, at, |c| c == '\n').unwrap_or(source.len())),
        '/' if next == Some('*') => Some(block_comment_end(source, at)),
        '"' => Some(quoted_end(source, at, '"')),
        '\'' if next == Some('\\') || (next.is_some() && source.get(at + 2) == Some(&'\'')) => {
            Some(quoted_end(source, at, '\''))
        }
        'r' if !at
            .checked_sub(1)
            .is_some_and(|before| is_word(source[before]) && !"bc".contains(source[before])) =>
        {
            raw_string_end(source, at)
        }
        _ => None,
    }
}

fn find(source: &[char], from: usize, wanted: impl Fn(char) -> bool) -> Option<usize> {
    (from..source.len()).find(|&at| wanted(source[at]))
}

/// Block comments nest.
fn block_comment_end(source: &[char], start: usize) -> usize {
    let (mut depth, mut at) = (0, start);
    while at + 1 < source.len() {
        match (source[at], source[at + 1]) {
            ('/', '*') => (depth, at) = (depth + 1, at + 2),
            ('*', '/') => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            return at;
        }
    }
    source.len()
}

fn quoted_end(source: &[char], start: usize, quote: char) -> usize {
    let mut at = start + 1;
    while at < source.len() && source[at] != quote {
        at += if source[at] == '\\' { 2 } else { 1 };
    }
    (at + 1).min(source.len())
}

/// `r"…"`, `r#"…"#` and so on; `None` for a name that begins with r, and for `r#name`.
fn raw_string_end(source: &[char], start: usize) -> Option<usize> {
    let quote = find(source, start + 1, |c| c != '#')?;
    if source[quote] != '"' {
        return None;
    }
    let hashes = quote - start - 1;
    let closes = |at: &usize| {
        source[*at] == '"' && source[*at + 1..].iter().take_while(|&&c| c == '#').count() >= hashes
    };
    Some((quote + 1..source.len()).find(closes).map_or(source.len(), |at| at + 1 + hashes))
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// A word of the code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Word<'a> {
    /// The word.
    pub text: &'a str,
    /// Its line, from 1.
    pub line: usize,
    /// All that stands before it.
    pub before: &'a str,
    /// All that follows it.
    pub after: &'a str,
}

/// The words of some code, in order.
pub fn words(code: &str) -> Vec<Word<'_>> {
    let mut words = Vec::new();
    let mut line = 1;
    let mut at = 0;
    while let Some(c) = code[at..].chars().next() {
        if is_word(c) {
            let length = code[at..].find(|c| !is_word(c)).unwrap_or(code.len() - at);
            let (before, after) = (&code[..at], &code[at + length..]);
            words.push(Word { text: &code[at..at + length], line, before, after });
            at += length;
        } else {
            line += usize::from(c == '\n');
            at += c.len_utf8();
        }
    }
    words
}

/// The paths of a use tree (or of an expression) that begins at `text`: `a::{b, c::d}` gives `a::b` and `a::c::d`.
///
/// A name brought in with `self` is its module, one with `*` ends in `*`, a renamed one keeps its first name.
pub fn paths(text: &str) -> Vec<Vec<String>> {
    let mut found = Vec::new();
    tree(text, &[], &mut found);
    found
}

/// Reads one tree and returns what follows it.
fn tree<'a>(text: &'a str, prefix: &[String], found: &mut Vec<Vec<String>>) -> &'a str {
    let text = text.trim_start();
    if let Some(mut rest) = text.strip_prefix('{') {
        while !rest.trim_start().starts_with('}') && !rest.trim_start().is_empty() {
            rest = tree(rest, prefix, found);
            let stop = rest.find([',', '}']).unwrap_or(rest.len());
            rest = rest[stop..].strip_prefix(',').unwrap_or(&rest[stop..]);
        }
        return rest.trim_start().strip_prefix('}').unwrap_or("");
    }
    let length = match text.starts_with('*') {
        true => 1,
        false => text.find(|c| !is_word(c)).unwrap_or(text.len()),
    };
    let (name, rest) = text.split_at(length);
    let mut path = prefix.to_vec();
    match name {
        // Nothing to read: a malformed tree, or a turbofish in an expression.
        "" => {
            found.push(path);
            return text.get(1..).unwrap_or("");
        }
        "self" if !prefix.is_empty() => {}
        name => path.push(name.to_owned()),
    }
    match rest.trim_start().strip_prefix("::") {
        Some(rest) => tree(rest, &path, found),
        None => {
            found.push(path);
            rest
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(code: &str) -> Vec<(&str, usize)> {
        words(code).into_iter().map(|word| (word.text, word.line)).collect()
    }

    #[test]
    fn comments_and_literals_are_blanked_and_lines_stay() {
        let text = "a // x \"\n/* b /* c */ d */ e \"f // \\\" g\"\nh r#\"i \" j\"# 'k' '\\'' br\"l\" m";
        assert_eq!(texts(&code_only(text)), [("a", 1), ("e", 2), ("h", 3), ("b", 3), ("m", 3)]);
        assert_eq!(code_only(text).chars().count(), text.chars().count());
    }

    #[test]
    fn lifetimes_and_raw_names_are_code() {
        let text = "fn f<'a>(r#type: &'a str, for_r: u8) -> &'static str { r#type } // unsafe";
        let code = code_only(text);
        assert!(code.contains("'a str") && code.contains("'static") && code.contains("r#type }"), "{code}");
        assert!(!code.contains("unsafe"));
    }

    #[test]
    fn what_is_never_closed_is_blank_to_the_end() {
        for text in ["a \"b", "a /* b", "a r##\"b\"#", "a '\\", "a // b"] {
            assert_eq!(code_only(text).trim(), "a", "{text}");
        }
    }

    #[test]
    fn a_use_tree_unfolds_into_its_paths() {
        let joined = |text| paths(text).into_iter().map(|path| path.join("::")).collect::<Vec<_>>();
        assert_eq!(joined("a::{b::{self, c as d}, e::*,\n f}; x::y"), ["a::b", "a::b::c", "a::e::*", "a::f"]);
        assert_eq!(joined("decoder::Block::load(source, {"), ["decoder::Block::load"]);
        assert_eq!(joined("a::{b, "), ["a::b"]);
        assert_eq!(joined("a::b::<u8>()"), ["a::b"]);
    }
}
