//! Snapshots on disk: whole or not there, and checked when they are read.
//!
//! A snapshot is a safetensors file, `step-00000100.safetensors`, and the best one `best.safetensors`. Its metadata holds the step, the settings, what the
//! optimisers remember that is no tensor, and a SHA-256 of all of it. It is written under another name, synced and
//! renamed; one that was torn all the same is passed over for the one before it.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use burn::tensor::{DType, TensorData};
use mla_core::{LayerSlot, Matrix, Part, Slot};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::optimise::{Remembered, Scalars};
use crate::origin::{Origin, hex};
use crate::settings::Settings;
use crate::trainer::Snapshot;

const PREFIX: &str = "step-";
const SUFFIX: &str = ".safetensors";
const BEST: &str = "best";
const HEADER: &str = "shrink";
const DIGEST: &str = "sha256";
/// Slots that train, by the names they have in a snapshot.
const SLOTS: [(&str, LayerSlot); 9] = [
    ("down_shared", LayerSlot::DownShared(Part::Weight)),
    ("down_k", LayerSlot::DownKey),
    ("up_k", LayerSlot::UpKey),
    ("down_v", LayerSlot::DownValue),
    ("up_v", LayerSlot::UpValue),
    ("down", LayerSlot::DownJoint),
    ("up", LayerSlot::UpJoint),
    ("cross_k", LayerSlot::CrossKey),
    ("cross_v", LayerSlot::CrossValue),
];

/// A folder of snapshots.
#[derive(Clone, Debug)]
pub struct Snapshots {
    folder: PathBuf,
    limit: usize,
}

/// A snapshot that cannot be kept or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SnapshotError {
    /// The disk failed.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// A file that is no whole snapshot.
    #[error("{} is damaged: {reason}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

impl SnapshotError {
    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            SnapshotError::Io { .. } => {
                "make room or mend the folder, then go on from the last snapshot with --resume"
            }
            SnapshotError::Damaged { .. } => "remove the file: --resume then takes the one before it",
        };
        Some(hint.into())
    }
}

/// What the tensors do not say.
#[derive(Serialize, Deserialize)]
struct Header {
    step: usize,
    settings: Settings,
    origin: Origin,
    /// By factor; `None` before the first step.
    scalars: Vec<(String, Option<Scalars>)>,
}

impl Snapshots {
    /// The snapshots in a folder, of which the newest `limit` are kept.
    pub fn new(folder: impl Into<PathBuf>, limit: usize) -> Self {
        Self { folder: folder.into(), limit: limit.max(1) }
    }

    /// Writes a snapshot, and removes those that are too many once it is there. What has a later step can only be torn: the run
    /// was there and went on from before.
    ///
    /// # Errors
    /// When the disk fails; the snapshots before it are untouched then.
    pub fn save(&self, snapshot: &Snapshot) -> Result<PathBuf, SnapshotError> {
        let path = self.write(snapshot, &name_of(snapshot.step))?;
        let (later, mut kept): (Vec<_>, Vec<_>) = self.files()?.into_iter().partition(|other| *other > path);
        let too_many = kept.len().saturating_sub(self.limit);
        for old in later.into_iter().chain(kept.drain(..too_many)) {
            fs::remove_file(&old).map_err(|source| SnapshotError::Io {
                action: "remove",
                path: old,
                source,
            })?;
        }
        Ok(path)
    }

    /// Writes a snapshot that is kept, however many come after it, until the next best.
    ///
    /// # Errors
    /// When the disk fails; the best before it is untouched then.
    pub fn save_best(&self, snapshot: &Snapshot) -> Result<PathBuf, SnapshotError> {
        self.write(snapshot, BEST)
    }

    /// The snapshot that [`save_best`](Self::save_best) wrote last.
    ///
    /// # Errors
    /// When there is none, or it is damaged.
    pub fn best(&self) -> Result<Snapshot, SnapshotError> {
        read(&self.folder.join(format!("{BEST}{SUFFIX}")))
    }

    /// Whether there is one, whole or not.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn is_empty(&self) -> Result<bool, SnapshotError> {
        Ok(self.files()?.is_empty())
    }

    /// Where the snapshot of a step lies.
    pub fn path(&self, step: usize) -> PathBuf {
        self.folder.join(format!("{}{SUFFIX}", name_of(step)))
    }

    /// Under another name first, then synced and renamed.
    fn write(&self, snapshot: &Snapshot, name: &str) -> Result<PathBuf, SnapshotError> {
        let io = |action, path: &Path| {
            let path = path.to_owned();
            move |source| SnapshotError::Io { action, path, source }
        };
        fs::create_dir_all(&self.folder).map_err(io("create", &self.folder))?;
        let path = self.folder.join(format!("{name}{SUFFIX}"));
        let partial = path.with_extension("partial");
        let written =
            fs::write(&partial, to_bytes(snapshot)).and_then(|()| fs::File::open(&partial)?.sync_all());
        if let Err(source) = written.and_then(|()| fs::rename(&partial, &path)) {
            // What is left of it would only take up room.
            let _ = fs::remove_file(&partial);
            return Err(SnapshotError::Io { action: "write", path, source });
        }
        // The name is on the disk only when its folder is.
        fs::File::open(&self.folder)
            .and_then(|folder| folder.sync_all())
            .map_err(io("sync", &self.folder))?;
        Ok(path)
    }

    /// The newest whole snapshot, and those that were damaged and passed over for it.
    ///
    /// # Errors
    /// When the folder or a file cannot be read.
    pub fn newest(&self) -> Result<(Option<Snapshot>, Vec<SnapshotError>), SnapshotError> {
        let mut damaged = Vec::new();
        for path in self.files()?.into_iter().rev() {
            match read(&path) {
                Ok(snapshot) => return Ok((Some(snapshot), damaged)),
                Err(error @ SnapshotError::Damaged { .. }) => damaged.push(error),
                Err(error) => return Err(error),
            }
        }
        Ok((None, damaged))
    }

    /// All of them, the oldest first.
    fn files(&self) -> Result<Vec<PathBuf>, SnapshotError> {
        let io = |source| SnapshotError::Io { action: "read", path: self.folder.clone(), source };
        let mut found = Vec::new();
        let entries = match fs::read_dir(&self.folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(found),
            entries => entries.map_err(io)?,
        };
        for entry in entries {
            let path = entry.map_err(io)?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if name.starts_with(PREFIX) && name.ends_with(SUFFIX) {
                found.push(path);
            }
        }
        found.sort();
        Ok(found)
    }
}

/// `step-00000100`: by name they stand in the order of their steps.
fn name_of(step: usize) -> String {
    format!("{PREFIX}{step:08}")
}

/// `layers.3.up_k`.
fn name(slot: Slot) -> String {
    let Slot::Layer(layer, slot) = slot else { unreachable!("only matrices of layers train") };
    let (name, _) = SLOTS.into_iter().find(|(_, known)| *known == slot).expect("a slot that trains");
    format!("layers.{layer}.{name}")
}

fn slot(name: &str) -> Option<Slot> {
    let (layer, name) = name.strip_prefix("layers.")?.split_once('.')?;
    let (_, slot) = SLOTS.into_iter().find(|(known, _)| *known == name)?;
    Some(Slot::Layer(layer.parse().ok()?, slot))
}

/// The tensors of a snapshot, in their order: each factor, then what is remembered of it.
fn tensors(snapshot: &Snapshot) -> Vec<(String, Vec<usize>, Vec<u8>)> {
    let mut all = Vec::new();
    for ((slot, matrix), remembered) in snapshot.factors.iter().zip(&snapshot.remembered) {
        let name = name(*slot);
        let bytes = matrix.data.iter().flat_map(|x| x.to_le_bytes()).collect();
        all.push((name.clone(), vec![matrix.rows, matrix.cols], bytes));
        for (moment, data) in remembered.iter().flat_map(|remembered| &remembered.tensors) {
            all.push((format!("{name}.{moment}"), data.shape().to_vec(), data.as_bytes().to_vec()));
        }
    }
    all
}

fn to_bytes(snapshot: &Snapshot) -> Vec<u8> {
    let tensors = tensors(snapshot);
    let scalars = snapshot.factors.iter().zip(&snapshot.remembered);
    let header = Header {
        step: snapshot.step,
        settings: snapshot.settings.clone(),
        origin: snapshot.origin.clone(),
        scalars: scalars
            .map(|((slot, _), found)| (name(*slot), found.as_ref().map(|found| found.scalars)))
            .collect(),
    };
    let header = serde_json::to_string(&header).expect("numbers and names");
    let views = tensors.iter().map(|(name, shape, bytes)| {
        let view = TensorView::new(Dtype::F32, shape.clone(), bytes).expect("four bytes a number");
        (name.as_str(), view)
    });
    let parts = tensors.iter().map(|(name, _, bytes)| (name.as_str(), bytes.as_slice()));
    let digest = digest(&header, parts);
    let metadata = HashMap::from([(HEADER.to_owned(), header), (DIGEST.to_owned(), digest)]);
    safetensors::serialize(views, Some(metadata)).expect("names are unique")
}

/// SHA-256 over the header and every tensor, by name.
fn digest<'a>(header: &str, tensors: impl Iterator<Item = (&'a str, &'a [u8])>) -> String {
    let mut tensors: Vec<_> = tensors.collect();
    tensors.sort_by_key(|(name, _)| *name);
    let mut sha = Sha256::new();
    sha.update(header);
    for (name, bytes) in tensors {
        sha.update(name);
        sha.update(bytes);
    }
    hex(sha)
}

fn read(path: &Path) -> Result<Snapshot, SnapshotError> {
    let bytes =
        fs::read(path).map_err(|source| SnapshotError::Io { action: "read", path: path.into(), source })?;
    from_bytes(&bytes).map_err(|reason| SnapshotError::Damaged { path: path.into(), reason })
}

fn from_bytes(bytes: &[u8]) -> Result<Snapshot, String> {
    let text = |e: &dyn std::fmt::Display| e.to_string();
    let (_, metadata) = SafeTensors::read_metadata(bytes).map_err(|e| text(&e))?;
    let file = SafeTensors::deserialize(bytes).map_err(|e| text(&e))?;
    let metadata = metadata.metadata().as_ref().ok_or("it has no header")?;
    let header = metadata.get(HEADER).ok_or("it has no header")?;
    let views = file.tensors();
    let found = digest(header, views.iter().map(|(name, view)| (name.as_str(), view.data())));
    if metadata.get(DIGEST) != Some(&found) {
        return Err("its checksum differs".into());
    }
    let header: Header = serde_json::from_str(header).map_err(|e| text(&e))?;
    let tensor = |name: &str| file.tensor(name).map_err(|e| text(&e));
    let (mut factors, mut remembered) = (Vec::new(), Vec::new());
    for (name, scalars) in header.scalars {
        let view = tensor(&name)?;
        let [rows, cols] = *view.shape() else { return Err(format!("{name} is no matrix")) };
        let number = |b: &[u8]| f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
        let matrix = Matrix::new(rows, cols, view.data().chunks_exact(4).map(number).collect());
        factors.push((slot(&name).ok_or_else(|| format!("{name} is nothing that trains"))?, matrix));
        let moment = |moment: &'static str| {
            let view = tensor(&format!("{name}.{moment}"))?;
            let data = TensorData::from_bytes_vec(view.data().to_vec(), view.shape().to_vec(), DType::F32);
            Ok::<_, String>((moment, data))
        };
        remembered.push(match scalars {
            None => None,
            Some(scalars) => {
                Some(Remembered { scalars, tensors: vec![moment("moment_1")?, moment("moment_2")?] })
            }
        });
    }
    Ok(Snapshot { step: header.step, settings: header.settings, origin: header.origin, factors, remembered })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(step: usize) -> Snapshot {
        let matrix = |x: f32| Matrix::new(2, 3, vec![x, -0.0, 1e-40, f32::MIN_POSITIVE, 3.5, x * x]);
        let moment = |x: f32| TensorData::new(vec![x; 6], [2, 3]);
        // The length is a number that is read back as another by whoever rounds twice.
        let scalars = Scalars { time: step, length: 2.371_373_705_661_655_4e-5, drift: 1e-17 };
        let remembered =
            Remembered { scalars, tensors: vec![("moment_1", moment(0.1)), ("moment_2", moment(0.2))] };
        Snapshot {
            step,
            settings: Settings { seed: 9, ..Settings::default() },
            origin: Origin::default(),
            factors: vec![
                (Slot::Layer(0, LayerSlot::UpKey), matrix(1.0)),
                (Slot::Layer(12, LayerSlot::CrossValue), matrix(step as f32)),
            ],
            remembered: vec![Some(remembered), None],
        }
    }

    #[test]
    fn the_newest_comes_back_to_the_bit_and_old_ones_go() {
        let folder = tempfile::tempdir().expect("a folder");
        let snapshots = Snapshots::new(folder.path().join("run"), 2);
        assert_eq!(snapshots.newest().expect("no folder yet").0, None);
        for step in [9, 10, 100] {
            snapshots.save(&snapshot(step)).expect("room");
        }
        assert_eq!(snapshots.files().expect("a folder").len(), 2);
        let (found, damaged) = snapshots.newest().expect("a folder");
        assert!(damaged.is_empty());
        assert_eq!(found, Some(snapshot(100)));
    }

    #[test]
    fn a_torn_snapshot_is_passed_over_for_the_one_before_it() {
        let folder = tempfile::tempdir().expect("a folder");
        let snapshots = Snapshots::new(folder.path(), 3);
        snapshots.save(&snapshot(1)).expect("room");
        let path = snapshots.save(&snapshot(2)).expect("room");
        let whole = fs::read(&path).expect("bytes");
        let mut flipped = whole.clone();
        *flipped.last_mut().expect("bytes") ^= 1;
        for torn in [&whole[..0], &whole[..7], &whole[..whole.len() / 2], &whole[..whole.len() - 1], &flipped]
        {
            fs::write(&path, torn).expect("written");
            let (found, damaged) = snapshots.newest().expect("a folder");
            assert_eq!(found, Some(snapshot(1)), "{} bytes", torn.len());
            let [SnapshotError::Damaged { path: named, .. }] = &damaged[..] else { panic!("{damaged:?}") };
            assert_eq!(named, &path);
        }
    }

    #[test]
    fn what_was_just_written_stays_and_torn_ones_of_later_steps_go() {
        let folder = tempfile::tempdir().expect("a folder");
        let snapshots = Snapshots::new(folder.path(), 1);
        let torn = snapshots.save(&snapshot(100)).expect("room");
        fs::write(&torn, "torn").expect("written");
        assert_eq!(snapshots.newest().expect("a folder").0, None);
        let path = snapshots.save(&snapshot(10)).expect("room");
        assert_eq!((path.exists(), torn.exists()), (true, false));
        assert_eq!(path, snapshots.path(10));
        assert_eq!(snapshots.newest().expect("a folder").0, Some(snapshot(10)));
    }

    #[test]
    fn a_file_that_cannot_be_read_is_not_taken_for_a_torn_one() {
        let folder = tempfile::tempdir().expect("a folder");
        let snapshots = Snapshots::new(folder.path(), 2);
        snapshots.save(&snapshot(1)).expect("room");
        fs::create_dir(snapshots.path(2)).expect("a folder in its place");
        let error = snapshots.newest().expect_err("no file");
        assert!(matches!(error, SnapshotError::Io { .. }), "{error}");
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_named() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("file");
        fs::write(&file, "").expect("written");
        let error = Snapshots::new(file.join("run"), 1).save(&snapshot(1)).expect_err("no folder");
        assert!(error.to_string().contains("file/run"), "{error}");
    }
}
