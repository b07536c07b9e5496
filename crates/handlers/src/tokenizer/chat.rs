//! How a model writes a conversation as one text: its chat template, in Jinja, as transformers renders it.
//!
//! transformers renders with blocks trimmed, with `break` and `continue`, with the methods of Python's strings and lists, and with
//! `raise_exception`. `strftime_now` is left undefined, which templates that use it provide for: the same conversation gives
//! the same text on every day.

use std::io::Write;
use std::path::{Path, PathBuf};

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Kwargs;
use minijinja::{Environment, ErrorKind, Value, context};
use serde::Serialize;
use serde_json::Value as Json;
use serde_json::ser::{Formatter, PrettyFormatter};

use super::files::{Files, text};
use crate::error::Error;

/// A template that lies in a file of its own.
const BESIDE: &str = "chat_template.jinja";
/// Special tokens that a template may name.
const TOKENS: [&str; 4] = ["bos_token", "eos_token", "pad_token", "unk_token"];

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Message {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// What is said.
    pub content: String,
}

impl Message {
    /// What a user says.
    pub fn of_user(content: impl Into<String>) -> Self {
        Self { role: "user".into(), content: content.into() }
    }
}

/// A model's chat template.
#[derive(Clone, Debug)]
pub struct ChatTemplate {
    path: PathBuf,
    source: String,
    tokens: Vec<(&'static str, String)>,
}

impl ChatTemplate {
    /// The template of a model folder: `chat_template.jinja`, or the field of `tokenizer_config.json`, of several the default;
    /// `None` for a model that is not made for conversations.
    ///
    /// # Errors
    /// When a file cannot be read or is no JSON object.
    pub fn open(folder: &Path) -> Result<Option<Self>, Error> {
        let files = Files::read(folder)?;
        let Some((path, source)) = source(folder, &files)? else { return Ok(None) };
        let of = |name: &'static str| {
            let content = |fields: &serde_json::Map<String, Json>| {
                let described = || fields.get(name)?.get("content")?.as_str();
                text(fields, name).or_else(described).map(str::to_owned)
            };
            content(files.settings())
                .or_else(|| content(files.special_tokens_map()))
                .map(|token| (name, token))
        };
        Ok(Some(Self { path, source, tokens: TOKENS.into_iter().filter_map(of).collect() }))
    }

    /// The template itself.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// A conversation as text, with special tokens written out; with `answer` up to where the model is to speak.
    ///
    /// # Errors
    /// When the template is none, or refuses the conversation.
    pub fn render(&self, messages: &[Message], answer: bool) -> Result<String, Error> {
        let mut environment = Environment::new();
        let mut syntax = SyntaxConfig::builder();
        syntax.trim_blocks(true).lstrip_blocks(true);
        environment.set_syntax(syntax.build().expect("the usual delimiters"));
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", |message: String| -> Result<Value, minijinja::Error> {
            Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
        });
        environment.add_filter("tojson", to_json);
        let tokens =
            Value::from_pairs(self.tokens.iter().map(|(name, token)| (*name, Value::from(token.as_str()))));
        let turn = |message: &Message| context! { role => message.role.as_str(), content => message.content.as_str() };
        let turns: Vec<Value> = messages.iter().map(turn).collect();
        let rendered = environment.render_str(
            &without_marks(&self.source),
            context! { messages => turns, add_generation_prompt => answer, ..tokens },
        );
        rendered.map_err(|error| Error::ChatTemplate { path: self.path.clone(), reason: reason(&error) })
    }
}

/// A template without the tags by which transformers marks, for training, what an assistant says; what is marked is text.
fn without_marks(source: &str) -> String {
    let mut plain = source.to_owned();
    for (mark, instead) in [("generation", "if true"), ("endgeneration", "endif")] {
        for (open, close) in [("{%", "%}"), ("{%-", "%}"), ("{%", "-%}"), ("{%-", "-%}")] {
            plain = plain.replace(&format!("{open} {mark} {close}"), &format!("{open} {instead} {close}"));
        }
    }
    plain
}

/// JSON as Python's `json.dumps` writes it, with `indent` or on one line.
fn to_json(value: &Value, options: Kwargs) -> Result<Value, minijinja::Error> {
    let indent = options.get::<Option<usize>>("indent")?.map(|width| " ".repeat(width));
    let mut bytes = Vec::new();
    let written = match &indent {
        Some(indent) => {
            let pretty = PrettyFormatter::with_indent(indent.as_bytes());
            value.serialize(&mut serde_json::Serializer::with_formatter(&mut bytes, pretty))
        }
        None => value.serialize(&mut serde_json::Serializer::with_formatter(&mut bytes, OneLine)),
    };
    let failed = |error: String| minijinja::Error::new(ErrorKind::BadSerialization, error);
    written.map_err(|error| failed(error.to_string()))?;
    let text = String::from_utf8(bytes).map_err(|error| failed(error.to_string()))?;
    Ok(Value::from_safe_string(text))
}

/// A space behind every comma and colon.
struct OneLine;

impl Formatter for OneLine {
    fn begin_array_value<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> std::io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> std::io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> std::io::Result<()> {
        writer.write_all(b": ")
    }
}

fn reason(error: &minijinja::Error) -> String {
    let what = error.detail().map_or_else(|| error.kind().to_string(), str::to_owned);
    error.line().map_or(what.clone(), |line| format!("line {line}: {what}"))
}

/// Where a folder's template lies, and the template.
fn source(folder: &Path, files: &Files) -> Result<Option<(PathBuf, String)>, Error> {
    let beside = folder.join(BESIDE);
    if beside.exists() {
        let source = std::fs::read_to_string(&beside).map_err(Error::io("read", &beside))?;
        return Ok(Some((beside, source)));
    }
    let settings = folder.join("tokenizer_config.json");
    let text = |value: &Json| value.as_str().map(|source| (settings.clone(), source.to_owned()));
    Ok(match files.settings().get("chat_template") {
        Some(Json::Array(named)) => {
            named.iter().find(|one| one["name"] == "default").and_then(|one| text(&one["template"]))
        }
        other => other.and_then(text),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(template: &str, messages: &[(&str, &str)]) -> Result<String, Error> {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join(BESIDE), template).expect("a template");
        let settings = serde_json::json!({ "bos_token": { "content": "<s>" }, "eos_token": "</s>" });
        std::fs::write(folder.path().join("tokenizer_config.json"), settings.to_string()).expect("settings");
        let message =
            |&(role, content): &(&str, &str)| Message { role: role.into(), content: content.into() };
        let messages: Vec<Message> = messages.iter().map(message).collect();
        ChatTemplate::open(folder.path())
            .expect("it can be read")
            .expect("a template")
            .render(&messages, true)
    }

    #[test]
    fn a_conversation_is_written_with_its_special_tokens_and_blocks_are_trimmed() {
        let template = "{{ bos_token }}{% for message in messages %}\n    {% if message['role'] == 'user' %}\n[INST] \
                        {{ message['content'].strip() }} [/INST]{% else %}\n{% generation %}{{ message.content }}{{ eos_token }}{% endgeneration %}\
                        {% endif %}\n{% endfor %}\n{% if add_generation_prompt %}Go{% endif %}";
        let found = render(template, &[("user", " hi "), ("assistant", "yes <&>"), ("user", "so?")]);
        assert_eq!(found.expect("text"), "<s>[INST] hi [/INST]yes <&></s>[INST] so? [/INST]Go");
    }

    #[test]
    fn json_is_written_as_python_writes_it() {
        let template = "{{ {'a': [1, 'é<'], 'b': none} | tojson }}|{{ [1] | tojson(indent=2) }}";
        assert_eq!(render(template, &[]).expect("text"), "{\"a\": [1, \"é<\"], \"b\": null}|[\n  1\n]");
    }

    #[test]
    fn a_template_that_refuses_or_is_broken_says_so_with_its_file() {
        for (template, what) in
            [("{{ raise_exception('no system here') }}", "no system here"), ("{% if %}", "line 1")]
        {
            let error = render(template, &[("user", "x")]).expect_err("a refusal").to_string();
            assert!(error.contains(what) && error.contains(BESIDE), "{error}");
        }
    }

    #[test]
    fn a_model_without_a_template_has_none() {
        let folder = tempfile::tempdir().expect("a folder");
        assert!(ChatTemplate::open(folder.path()).expect("nothing to read").is_none());
    }
}
