//! The conversion from folder to folder: handlers → calib → handlers.

use calib::{Conversion, Goal, Method, Objective, Plan, Scratch, Search, Width};
use handlers::{Dtype, FolderLayout, FolderPlan, MlaSection, Model, Output, Written, write_folder};
use mla_core::{CacheDtype, Patch, WeightSource};

use crate::calibration::Calibration;
use crate::kept::Store;
use crate::record::{CARD, RECORD, Reported, card, measured, record};
use crate::session::{Opened, Session};

/// Weight files above this are cut into shards.
pub const MAX_SHARD_BYTES: u64 = 5 << 30;

/// What a conversion is asked for.
#[derive(Clone, Debug)]
pub struct Request {
    /// What is tried; of several the best is kept.
    pub plans: Vec<Plan>,
    /// What is to be reached by rank and bits together; the plans then say by which methods.
    pub goal: Option<Goal>,
    /// What latents may be kept as on the way to a goal.
    pub dtypes: Vec<CacheDtype>,
    /// How statistics are gathered.
    pub options: calib::Options,
    /// Correct decoders for what they really read, if that measures better.
    pub sequential: bool,
    /// Store the original `W_k` and `W_v` too.
    pub store_original_weights: bool,
    /// Type of every stored tensor; `None` keeps the donor's, and f32 for the factors.
    pub dtype: Option<Dtype>,
}

/// Factorises a donor's attention.
///
/// # Errors
/// When a plan does not fit the model, or calibration fails.
pub fn factors(
    session: &Session,
    opened: &Opened,
    request: &Request,
    calibration: Option<&Calibration>,
    store: &Store,
    scratch: &Scratch,
) -> anyhow::Result<Conversion> {
    let text = calibration.map(Calibration::text);
    let (donor, plans, options, device) = (&opened.model, &request.plans, &request.options, &session.device);
    let found = store.statistics(session, opened, plans, text, options, scratch)?;
    let mut phases = session.ui.phases();
    if let (Some(goal), Some(text)) = (request.goal, text) {
        let search = Search { base: plans, dtypes: &request.dtypes, goal };
        let conversion = calib::search(donor, &found, search, text.select, device, &mut phases)?;
        return Ok(calib::report(donor, conversion, text.report, device, scratch, &mut phases)?);
    }
    let select = text.map_or(&[][..], |text| text.select);
    let mut conversion = calib::choose(donor, &found, plans, select, device, &mut phases)?;
    let Some(text) = text else { return Ok(conversion) };
    if request.sequential {
        conversion = calib::correct(donor, conversion, text, options.sink, device, scratch, &mut phases)?;
    }
    Ok(calib::report(donor, conversion, text.report, device, scratch, &mut phases)?)
}

/// Converts by xkv, and measures `separate` at the same cache bytes beside it: its KL to the donor, where text is held back.
///
/// # Errors
/// As [`factors`].
pub fn xkv_and_separate(
    session: &Session,
    opened: &Opened,
    request: &Request,
    calibration: &Calibration,
    store: &Store,
    scratch: &Scratch,
) -> anyhow::Result<(Conversion, Option<f64>)> {
    let text = calibration.text();
    let (donor, options, device) = (&opened.model, &request.options, &session.device);
    let found = store.statistics(session, opened, &request.plans, Some(text), options, scratch)?;
    let mut phases = session.ui.phases();
    let mut choose = |plans: &[Plan]| calib::choose(donor, &found, plans, text.select, device, &mut phases);
    let conversion = choose(&request.plans)?;
    let width = Width::Ratio(ratio(&conversion));
    let instead = choose(&[Plan { method: Method::Separate, width, ..conversion.plan }])?.selection_kl();
    let conversion = calib::report(donor, conversion, text.report, device, scratch, &mut phases)?;
    Ok((conversion, instead))
}

/// What a plan minimises, as folders and tables name it: `mse` without text is the error of the weights alone.
pub fn objective(plan: &Plan, calibrated: bool) -> &'static str {
    match plan.objective {
        Objective::Mse if !calibrated => "weights",
        other => other.name(),
    }
}

/// Writes a converted model.
///
/// # Errors
/// As [`write_folder`].
pub fn write(
    session: &Session,
    donor: &Opened,
    request: &Request,
    calibration: Option<&Calibration>,
    conversion: &Conversion,
    output: Output,
) -> anyhow::Result<Written> {
    let plan = &conversion.plan;
    let objective = objective(plan, calibration.is_some());
    let config = conversion.factors.config();
    let mut section =
        MlaSection::from_config(plan.method.name(), objective, config, request.store_original_weights);
    match plan.method {
        Method::Cascade(cascade) => {
            section.window = Some(cascade.window);
            section.group = cascade.group;
        }
        Method::Xkv(xkv) => section.group_size = Some(xkv.group_size),
        Method::DecoupledRope { d_rope } => section.d_rope = Some(d_rope),
        Method::Deepseek(deepseek) => section.d_rope = Some(deepseek.d_rope),
        Method::Separate | Method::Joint => {}
    }
    let record = record(donor, request, calibration, conversion)?;
    let reported = calibration.and_then(|text| Reported::of(conversion, text));
    let card = card(&record, config, donor.model.folder(), &measured(conversion, reported.as_ref()))?;
    let plan = FolderPlan {
        donor: &donor.model,
        section,
        factors: &conversion.factors,
        dtype: request.dtype,
        extra: vec![(RECORD.into(), record.bytes()), (CARD.into(), card.into_bytes())],
        max_shard_bytes: MAX_SHARD_BYTES,
    };
    write_shown(session, &plan, output)
}

/// Writes a folder, and shows how far it is.
///
/// # Errors
/// As [`write_folder`].
pub fn write_shown(session: &Session, plan: &dyn FolderLayout, output: Output) -> anyhow::Result<Written> {
    let task = std::sync::Mutex::new(session.ui.task("writing (MB)", 0));
    let on_bytes = |done: u64, total: u64| {
        if let Ok(mut task) = task.lock() {
            task.at(done >> 20, total >> 20);
        }
    };
    let written = write_folder(plan, output, &on_bytes)?;
    if let Ok(task) = task.into_inner() {
        task.finish();
    }
    Ok(written)
}

/// The donor's cache over the converted one's.
pub fn ratio(conversion: &Conversion) -> f64 {
    conversion.factors.config().compression_ratio()
}

/// Whether a donor could be converted at all, before anything is read of it but its configuration.
///
/// # Errors
/// As [`Plan::check`].
pub fn check(request: &Request, donor: &Model) -> Result<(), calib::Error> {
    request.plans.iter().try_for_each(|plan| plan.check(donor.config()))
}
