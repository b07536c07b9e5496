//! What is gathered of a donor and a text is kept for the conversions that follow, in a cache folder with a limit.
//!
//! Statistics and the text that a model writes do not depend on a ratio or a method. They are known by a digest of all that they
//! do depend on, so an entry is the right one or is not found; what is made from them is the same to the bit. An entry is
//! written beside its place and renamed; one that cannot be read is gathered again. When the limit is passed, the entries
//! that were used longest ago go.

mod arrays;

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use calib::{Options, Plan, Scratch, Statistics, Text};
use mla_core::WeightSource;
use sha2::{Digest, Sha256};

use crate::args::KeepArgs;
use crate::calibration::hex;
use crate::machine::disk_available;
use crate::report::bytes;
use crate::session::{Opened, Session};

/// Where entries lie, in place of the user's cache folder.
const FOLDER: &str = "SHRINK_CACHE";
/// Changes whenever entries of before would be misread.
const FORMAT: &str = "1";

/// The cache folder and its limit.
#[derive(Clone, Debug)]
pub struct Store {
    /// `None` where nothing is kept.
    folder: Option<PathBuf>,
    limit: u64,
}

impl Store {
    /// A store of as many GiB as were asked for; of none nothing is kept or taken up.
    pub fn new(args: KeepArgs) -> Self {
        let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
        let user = || std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).or_else(home);
        let folder = std::env::var_os(FOLDER).map(PathBuf::from).or_else(|| Some(user()?.join("shrink")));
        let limit = (args.keep_statistics * (1u64 << 30) as f64) as u64;
        Self { folder: folder.filter(|_| limit > 0).map(|folder| folder.join("kept")), limit }
    }

    /// A donor's statistics: those that were kept, with what is missing gathered, or all gathered anew; and kept.
    ///
    /// # Errors
    /// As [`calib::statistics`]; when the donor's files cannot be read. A store that cannot be written to is a note.
    pub fn statistics(
        &self,
        session: &Session,
        donor: &Opened,
        plans: &[Plan],
        text: Option<Text<'_>>,
        options: &Options,
        scratch: &Scratch,
    ) -> anyhow::Result<Statistics> {
        let (model, device) = (&donor.model, &session.device);
        let gather = || {
            let mut phases = session.ui.phases();
            calib::statistics(model, plans, text, options, device, scratch, &mut phases)
        };
        let (Some(folder), Some(text)) = (&self.folder, text) else { return Ok(gather()?) };
        let path = folder.join(format!("{}.statistics", statistics_key(session, donor, text, options)?));
        let needs = calib::needs(plans, options);
        let found = arrays::read(&path, model.config(), &needs, scratch).unwrap_or_else(|reason| {
            session.ui.note(&format!("note: {} is gathered again: {reason}", path.display()));
            None
        });
        let (statistics, known) = match found {
            Some(mut statistics) => {
                session.ui.note("statistics of this donor and text are taken up again");
                used(&path);
                let known = statistics.holds();
                statistics.add_shared(model, text.fit, &needs, device, &mut session.ui.phases())?;
                (statistics, Some(known))
            }
            None => (gather()?, None),
        };
        if known != Some(statistics.holds()) {
            let size = statistics
                .arrays()
                .iter()
                .map(|array| 8 * array.shape.iter().product::<usize>() as u64)
                .sum();
            self.keep(session, &path, "statistics", size, |file| arrays::write(file, &statistics));
        }
        Ok(statistics)
    }

    /// Text that a model writes: what was kept, or what `write` makes, which is kept.
    ///
    /// # Errors
    /// As `write`; when the donor's files cannot be read.
    pub fn sampled(
        &self,
        session: &Session,
        donor: &Opened,
        (count, length, seed): (usize, usize, u64),
        write: impl FnOnce() -> anyhow::Result<Vec<u32>>,
    ) -> anyhow::Result<Vec<u32>> {
        let Some(folder) = &self.folder else { return write() };
        let mut digest = digest_of(session, donor)?;
        [count as u64, length as u64, seed].iter().for_each(|number| digest.update(number.to_le_bytes()));
        for file in
            ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"]
        {
            digest.update(fs::read(donor.model.folder().join(file)).unwrap_or_default());
        }
        let path = folder.join(format!("{}.tokens", hex(&digest.finalize())));
        let kept = fs::read(&path).ok().filter(|kept| kept.len() == 4 * count);
        if let Some(kept) = kept {
            session.ui.note("text that this model wrote before is taken up again");
            used(&path);
            return Ok(kept.as_chunks::<4>().0.iter().map(|token| u32::from_le_bytes(*token)).collect());
        }
        let tokens = write()?;
        let raw: Vec<u8> = tokens.iter().flat_map(|token| token.to_le_bytes()).collect();
        self.keep(session, &path, "sampled text", raw.len() as u64, |file| Ok(file.write_all(&raw)?));
        Ok(tokens)
    }

    /// Puts an entry in its place, whole or not at all, and removes what has to go for it.
    fn keep(
        &self,
        session: &Session,
        path: &Path,
        what: &str,
        size: u64,
        write: impl FnOnce(&mut dyn Write) -> anyhow::Result<()>,
    ) {
        let Some(folder) = &self.folder else { return };
        let room = disk_available(folder).unwrap_or(u64::MAX) / 2;
        if size > self.limit.min(room) {
            session.ui.note(&format!(
                "note: {what} of {} are not kept: --keep-statistics allows {}, and half of what the disk has free is {}",
                bytes(size),
                bytes(self.limit),
                bytes(room)
            ));
            return;
        }
        let put = || -> anyhow::Result<()> {
            fs::create_dir_all(folder)?;
            make_room(folder, self.limit - size, path)?;
            let mut file = std::io::BufWriter::new(tempfile::NamedTempFile::new_in(folder)?);
            write(&mut file)?;
            file.into_inner()?.persist(path)?;
            Ok(())
        };
        match put() {
            Ok(()) => session.ui.note(&format!(
                "{what}, {}, kept for further conversions in {}",
                bytes(size),
                folder.display()
            )),
            Err(error) => {
                session.ui.note(&format!("note: {what} could not be kept in {}: {error}", folder.display()))
            }
        }
    }
}

/// All that statistics depend on beside what they hold.
fn statistics_key(
    session: &Session,
    donor: &Opened,
    text: Text<'_>,
    options: &Options,
) -> anyhow::Result<String> {
    let mut digest = digest_of(session, donor)?;
    for window in text.fit {
        digest.update((window.len() as u64).to_le_bytes());
        window.iter().for_each(|token| digest.update(token.to_le_bytes()));
    }
    digest.update(options.sink.to_le_bytes());
    let numbers = [options.seed, options.fisher_windows as u64, options.fisher_draws as u64];
    numbers.iter().for_each(|number| digest.update(number.to_le_bytes()));
    Ok(hex(&digest.finalize()))
}

/// A donor's weights and configuration, this version, and the device, whose arithmetic is its own.
fn digest_of(session: &Session, donor: &Opened) -> anyhow::Result<Sha256> {
    let mut digest = Sha256::new();
    digest.update(FORMAT);
    digest.update(env!("CARGO_PKG_VERSION"));
    digest.update(donor.weights_sha256()?);
    digest.update(fs::read(donor.model.folder().join("config.json")).unwrap_or_default());
    digest.update(format!("{:?}", session.device));
    Ok(digest)
}

/// Marks an entry as used now.
fn used(path: &Path) {
    // Where times cannot be set, the order in which entries go is that of their making.
    let _ = File::options().append(true).open(path).and_then(|file| file.set_modified(SystemTime::now()));
}

/// Removes entries, those used longest ago first, until the others take `left` bytes at most; `taken` is to be replaced.
fn make_room(folder: &Path, left: u64, taken: &Path) -> std::io::Result<()> {
    let mut entries = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let known = entry.path().extension().is_some_and(|end| end == "statistics" || end == "tokens");
        if known && entry.path() != taken {
            let about = entry.metadata()?;
            entries.push((about.modified()?, about.len(), entry.path()));
        }
    }
    entries.sort();
    let mut sum: u64 = entries.iter().map(|(_, size, _)| size).sum();
    for (_, size, path) in entries {
        if sum <= left {
            break;
        }
        fs::remove_file(path)?;
        sum -= size;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn entries_that_were_used_longest_ago_go_first() {
        let folder = tempfile::tempdir().expect("a folder");
        let entry = |name: &str, age: u64| {
            let path = folder.path().join(name);
            fs::write(&path, [0; 100]).expect("an entry");
            let file = File::options().append(true).open(&path).expect("it is there");
            file.set_modified(SystemTime::now() - Duration::from_secs(age)).expect("a time");
            path
        };
        let [old, newer, other] =
            [("a.statistics", 900), ("b.tokens", 500), ("notes.txt", 1000)].map(|(n, t)| entry(n, t));
        let replaced = entry("c.statistics", 2000);
        make_room(folder.path(), 150, &replaced).expect("room");
        let left = [old, newer.clone(), other, replaced].map(|path| path.exists());
        assert_eq!(left, [false, true, true, true], "neither what is not ours nor what is replaced");
        used(&newer);
        make_room(folder.path(), 0, Path::new("none")).expect("room");
        assert!(!newer.exists());
    }
}
