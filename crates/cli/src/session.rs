//! What every command needs: a device, the known families, somewhere to show progress and to print.

use std::cell::OnceCell;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;
use burn::tensor::Device;
use calib::Factors;
use handlers::hub::{Hub, ModelFolder, Need};
use handlers::{MlaSection, Model, Registry, Tokenizer, read_config};
use mla_core::{Decoder, DecoderConfig, Patch, SourceError, WeightDtype, WeightSource};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::args::{self, CacheArgs, CacheDtype, Global, WeightArgs};
use crate::calibration::hex;
use crate::corpus::{self, Documents, Tokens};
use crate::error::UserError;
use crate::shorter::shorter;
use crate::ui::Ui;

/// One run of the program.
pub struct Session {
    /// Where to compute.
    pub device: Device,
    /// The families that are known.
    pub registry: Registry,
    /// Progress and notes.
    pub ui: Ui,
    /// Whether results are JSON.
    pub json: bool,
}

/// A model that was found and opened.
#[derive(Debug)]
pub struct Opened {
    /// Where it was found.
    pub found: ModelFolder,
    /// The model.
    pub model: Model,
    /// What stands in the place of its latent matrices, where its latents are cut short.
    pub shorter: Option<Factors>,
    weights_sha256: OnceCell<String>,
}

impl Opened {
    /// How the user would name the model again: its hub id and commit, or its absolute path.
    pub fn name(&self) -> String {
        match (&self.found.id, &self.found.revision) {
            (Some(id), Some(revision)) => format!("{id}@{revision}"),
            (Some(id), None) => id.clone(),
            (None, _) => self
                .found
                .path
                .canonicalize()
                .unwrap_or_else(|_| self.found.path.clone())
                .display()
                .to_string(),
        }
    }

    /// SHA-256 over the weight files in their order, in hex.
    ///
    /// # Errors
    /// When one cannot be read.
    pub fn weights_sha256(&self) -> Result<&str, handlers::Error> {
        if let Some(known) = self.weights_sha256.get() {
            return Ok(known);
        }
        let mut digest = Sha256::new();
        let mut buffer = vec![0; 1 << 20];
        for path in self.model.checkpoint().files() {
            let failed = |source| handlers::Error::Io { action: "read", path: path.to_path_buf(), source };
            let mut file = std::fs::File::open(path).map_err(failed)?;
            loop {
                match file.read(&mut buffer).map_err(failed)? {
                    0 => break,
                    n => digest.update(&buffer[..n]),
                }
            }
        }
        Ok(self.weights_sha256.get_or_init(|| hex(&digest.finalize())))
    }

    /// A short name for people.
    pub fn title(&self) -> String {
        match &self.found.id {
            Some(id) => id.clone(),
            None => self.name().rsplit('/').next().unwrap_or("model").to_owned(),
        }
    }
}

impl Session {
    /// Opens the device and looks at the terminal.
    ///
    /// # Errors
    /// When the device cannot be had.
    pub fn new(global: &Global, registry: Registry) -> Result<Self, UserError> {
        Ok(Self {
            device: crate::device::open(&global.device)?,
            registry,
            ui: Ui::new(global.quiet),
            json: global.json,
        })
    }

    /// Whether numbers are computed in the memory of the machine, not of a device of its own.
    pub fn computes_on_host(&self) -> bool {
        crate::device::is_host(&self.device)
    }

    /// Finds a model, on the disk or on the hub.
    ///
    /// # Errors
    /// When there is none, or it cannot be fetched.
    pub fn find(&self, name: &str, need: Need) -> anyhow::Result<ModelFolder> {
        Ok(Hub::from_env().resolve(name, need, &self.ui.downloads())?)
    }

    /// Finds the configuration of a model: its folder, or the `config.json` that was named.
    ///
    /// # Errors
    /// When there is none, or it cannot be fetched.
    pub fn find_config(&self, name: &str) -> anyhow::Result<PathBuf> {
        let file = Path::new(name);
        match file.is_file() {
            true => Ok(file.to_path_buf()),
            false => Ok(self.find(name, Need::ConfigOnly)?.path),
        }
    }

    /// Reads the configuration of a model and nothing else of it, so that what cannot be used says so before anything large is
    /// fetched.
    ///
    /// # Errors
    /// When there is none, or it is of no known family.
    pub fn describe(&self, name: &str) -> anyhow::Result<(DecoderConfig, Option<MlaSection>)> {
        let (_, config, section) = read_config(&self.find(name, Need::ConfigOnly)?.path, &self.registry)?;
        Ok((config, section))
    }

    /// Finds and opens a model, and says what is unusual in it and what was not used. Of a model on the hub the configuration
    /// is read before anything else is fetched.
    ///
    /// # Errors
    /// When it is no complete model of a known family.
    pub fn open(&self, name: &str) -> anyhow::Result<Opened> {
        let accept = |folder: &Path| read_config(folder, &self.registry).map(drop);
        let found = Hub::from_env().resolve_if(name, &accept, &self.ui.downloads())?;
        let model = Model::open(&found.path, &self.registry)?;
        for note in model.notes() {
            self.ui.note(&format!("note: {note}"));
        }
        if let [first, ..] = model.unused() {
            self.ui.note(&format!("note: {} tensor(s) not used, the first is {first}", model.unused().len()));
        }
        Ok(Opened { found, model, shorter: None, weights_sha256: OnceCell::new() })
    }

    /// As [`open`](Self::open), to be run with a cache as asked for.
    ///
    /// # Errors
    /// As [`open`](Self::open), and when integers are asked for and there are no latents, or the device does not compute in the
    /// cache's type.
    pub fn open_to_run(&self, name: &str, cache: CacheArgs) -> anyhow::Result<Opened> {
        let mut opened = self.open(name)?;
        self.keep_cache_as(&mut opened, cache)?;
        self.check_own_cache(opened.model.config())?;
        if let Some(ratio) = cache.compression_ratio {
            opened.shorter = Some(shorter(self, &opened.model, ratio)?);
        }
        Ok(opened)
    }

    /// Refuses a model whose cache is in a type that the device does not compute in.
    ///
    /// # Errors
    /// When it is.
    pub fn check_own_cache(&self, config: &DecoderConfig) -> Result<(), UserError> {
        let dense = (0..config.n_layers()).any(|layer| config.latent(layer).is_none());
        self.check_cache(config.cache_dtype, dense)
    }

    /// Refuses a type of cache that the device does not compute in; `dense` says whether layers without latents are kept in it.
    ///
    /// # Errors
    /// When it does not.
    pub fn check_cache(&self, dtype: mla_core::CacheDtype, dense: bool) -> Result<(), UserError> {
        match dtype.runs_on(&self.device, dense) {
            true => Ok(()),
            false => Err(UserError::CacheOnDevice { dtype: dtype.name(), float: dtype.float().name() }),
        }
    }

    fn keep_cache_as(&self, opened: &mut Opened, cache: CacheArgs) -> anyhow::Result<()> {
        let Some(dtype) = cache.cache_dtype.map(CacheDtype::dtype) else { return Ok(()) };
        let config = opened.model.config();
        let latents: Vec<_> = (0..config.n_layers()).filter_map(|layer| config.latent(layer)).collect();
        if dtype.bits().is_some() {
            if latents.is_empty() {
                return Err(UserError::NoLatents { dtype: dtype.name() }.into());
            }
            if !latents.iter().any(|latent| latent.balanced) {
                self.ui.note(&format!(
                    "note: this folder does not say in which basis its latents are best quantised; {} will cost more than it \
                     must",
                    dtype.name()
                ));
            }
        }
        opened.model.set_cache_dtype(dtype);
        Ok(())
    }

    /// The type in which large matrices are held: what was asked for, else as they are stored where products widen them as they read.
    pub fn weights(&self, args: WeightArgs) -> WeightDtype {
        match args.weight_dtype {
            Some(args::WeightDtype::F32) => WeightDtype::F32,
            Some(args::WeightDtype::Stored) => WeightDtype::Stored,
            None if self.computes_on_host() => WeightDtype::Stored,
            None => WeightDtype::F32,
        }
    }

    /// Loads every weight of an opened model to run it, its latents cut short where that was asked for.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn load_opened(&self, opened: &Opened, weights: WeightArgs) -> anyhow::Result<Decoder> {
        let (model, device, weights) = (&opened.model, &self.device, self.weights(weights));
        match &opened.shorter {
            None => self.loading(|| Decoder::load_as(model, device, weights)),
            Some(shorter) => self.loading(|| Decoder::load_as(&shorter.over(model), device, weights)),
        }
    }

    /// Loads every weight of an opened model.
    ///
    /// # Errors
    /// When a tensor cannot be read or is not finite.
    pub fn load(&self, model: &Model) -> anyhow::Result<Decoder> {
        self.loading(|| Decoder::load(model, &self.device))
    }

    /// As [`load`](Self::load); what equals a weight of `other` is in memory once.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn load_beside(&self, model: &Model, other: &Decoder) -> anyhow::Result<Decoder> {
        self.loading(|| Decoder::load_beside(model, &self.device, other))
    }

    fn loading(&self, load: impl FnOnce() -> Result<Decoder, SourceError>) -> anyhow::Result<Decoder> {
        let mut task = self.ui.task("loading", 1);
        let decoder = load().map_err(source_error)?;
        task.at(1, 1);
        task.finish();
        Ok(decoder)
    }

    /// Prints a result to stdout: the object with `--json`, else the text.
    ///
    /// # Errors
    /// When stdout is closed.
    pub fn print(&self, object: &Value, text: &str) -> anyhow::Result<()> {
        if self.json { self.write(&format!("{object:#}\n")) } else { self.write(text) }
    }

    /// Writes to stdout as it is.
    ///
    /// # Errors
    /// When stdout is closed.
    pub fn write(&self, text: &str) -> anyhow::Result<()> {
        let mut out = std::io::stdout().lock();
        let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
        written.map_err(|source| UserError::Stdio { action: "write to stdout", source }.into())
    }

    /// Opens a model's tokenizer for prompts, and says where others give other tokens.
    ///
    /// # Errors
    /// When the folder has none, or a file of it is damaged.
    pub fn tokenizer(&self, model: &Model) -> anyhow::Result<Tokenizer> {
        let tokenizer = Tokenizer::open(model.folder())?;
        for note in tokenizer.notes() {
            self.ui.note(&format!("note: {note}"));
        }
        Ok(tokenizer)
    }

    /// Reads text files as one stream of tokens: all of it, or its first `wanted` tokens.
    ///
    /// # Errors
    /// When a file cannot be read or holds no text.
    pub fn tokens(
        &self,
        model: &Model,
        files: &[PathBuf],
        field: &str,
        wanted: Option<usize>,
    ) -> anyhow::Result<Vec<u32>> {
        let mut ids = self.tokens_of(model, Documents::of_files(files, field)?, wanted)?.ids;
        ids.truncate(wanted.unwrap_or(usize::MAX));
        Ok(ids)
    }

    /// Reads documents as one stream of tokens, and says what of them could not be read.
    ///
    /// # Errors
    /// As [`tokens`](Self::tokens).
    pub fn tokens_of(
        &self,
        model: &Model,
        mut documents: Documents,
        wanted: Option<usize>,
    ) -> anyhow::Result<Tokens> {
        let tokenizer = Tokenizer::open(model.folder())?;
        for note in tokenizer.notes().iter().filter(|note| !note.is_of_prompts()) {
            self.ui.note(&format!("note: {note}"));
        }
        let encode = |text: &str| tokenizer.encode(text).context("tokenising the text");
        let found = corpus::tokens(&mut documents, wanted, encode)?;
        for skipped in documents.skipped() {
            self.ui.note(&format!("note: {skipped}"));
        }
        Ok(found)
    }
}

/// Brings a weight source's error back to its own type, so that its hint is found.
pub fn source_error(error: SourceError) -> anyhow::Error {
    match error.downcast::<handlers::Error>() {
        Ok(error) => (*error).into(),
        Err(error) => anyhow::anyhow!("{error}"),
    }
}
