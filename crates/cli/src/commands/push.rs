//! `shrink push`.

use std::path::PathBuf;
use std::sync::Mutex;

use anyhow::Context;
use handlers::hub::{Hub, PushOptions, UploadObserver};
use serde_json::{Value, json};

use crate::args::PushArgs;
use crate::error::UserError;
use crate::record::{RECORD, Record};
use crate::report::bytes;
use crate::session::Session;
use crate::ui::Task;

/// Publishes a folder.
pub fn run(session: &Session, args: &PushArgs) -> anyhow::Result<()> {
    // Of a folder of somebody else's it is not known what in it is meant for others.
    let not_ours = || UserError::NotOurs { path: args.folder.clone() };
    let record = Record::read(&args.folder)?.ok_or_else(not_ours)?;
    let files = record.other.get("files").and_then(Value::as_array).ok_or_else(not_ours)?;
    let names = files.iter().filter_map(|name| name.as_str().map(str::to_owned));
    let mut files: Vec<_> = names.map(|name| (name.clone(), args.folder.join(name))).collect();
    // A record that came from elsewhere may name what is nobody's business.
    let is_of_the_folder = |(name, path): &(String, PathBuf)| {
        !name.contains(['/', '\\']) && path.symlink_metadata().is_ok_and(|file| file.is_file())
    };
    if let Some((name, _)) = files.iter().find(|file| !is_of_the_folder(file)) {
        return Err(UserError::NotOfTheFolder { name: name.clone() }.into());
    }
    let scratch = tempfile::tempdir().context("cannot make a temporary folder")?;
    let public = scratch.path().join(RECORD);
    std::fs::write(&public, record.without_paths().bytes()).context("cannot write a temporary file")?;
    files.iter_mut().filter(|(name, _)| name == RECORD).for_each(|(_, path)| path.clone_from(&public));
    let shown = Shown { task: Mutex::new(session.ui.task("uploading (MB)", 0)), at: Mutex::new((0, 0)) };
    let options = PushOptions { public: args.public, message: args.message.clone() };
    let pushed = Hub::from_env().push(&files, &args.repository, &options, &shown)?;
    if let Ok(task) = shown.task.into_inner() {
        task.finish();
    }
    let object = json!({
        "url": pushed.url,
        "commit": pushed.commit,
        "files": pushed.files,
        "sent_bytes": pushed.sent,
        "known_bytes": pushed.known,
    });
    let known = match pushed.known {
        0 => String::new(),
        known => format!(", {} were there", bytes(known)),
    };
    let text = format!(
        "{}: {} files, {} sent{known}\ncommit {}\n",
        pushed.url,
        pushed.files,
        bytes(pushed.sent),
        pushed.commit
    );
    session.print(&object, &text)?;
    Ok(())
}

/// The bar: bytes done and in all of the file at hand.
struct Shown {
    task: Mutex<Task>,
    at: Mutex<(u64, u64)>,
}

impl Shown {
    fn show(&self, change: impl FnOnce(&mut (u64, u64))) {
        if let (Ok(mut at), Ok(mut task)) = (self.at.lock(), self.task.lock()) {
            change(&mut at);
            task.at(at.0 >> 20, at.1 >> 20);
        }
    }
}

impl UploadObserver for Shown {
    fn begin(&self, _file: &str, bytes: u64) {
        self.show(|at| *at = (0, bytes));
    }

    fn advance(&self, bytes: u64) {
        self.show(|at| at.0 += bytes);
    }
}
