//! The conversion from folder to folder: handlers → calib → handlers.

use calib::{Conversion, Method, Objective, Plan, Scratch, Text, Width};
use handlers::{Dtype, FolderPlan, MlaSection, Model, Output, Written, write_folder};
use mla_core::{Patch, WeightSource};

use crate::calibration::Calibration;
use crate::record::{card, record};
use crate::session::{Opened, Session};

/// Weight files above this are cut into shards.
const MAX_SHARD_BYTES: u64 = 5 << 30;

/// What a conversion is asked for.
#[derive(Clone, Debug)]
pub struct Request {
    /// What is tried; of several the best is kept.
    pub plans: Vec<Plan>,
    /// How statistics are gathered.
    pub options: calib::Options,
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
    donor: &Model,
    request: &Request,
    calibration: Option<&Calibration>,
    scratch: &Scratch,
) -> anyhow::Result<Conversion> {
    let text = calibration.map(Calibration::text);
    let mut phases = session.ui.phases();
    let (plans, options) = (&request.plans, &request.options);
    Ok(calib::convert(donor, plans, text, options, &session.device, scratch, &mut phases)?)
}

/// KL to the donor of `separate` at the cache bytes of an xkv conversion: what sharing a basis costs.
///
/// # Errors
/// As [`factors`].
pub fn separate_instead(
    session: &Session,
    donor: &Model,
    request: &Request,
    calibration: &Calibration,
    conversion: &Conversion,
    scratch: &Scratch,
) -> anyhow::Result<Option<f64>> {
    let width = Width::Ratio(conversion.factors.config().compression_ratio());
    let plan = Plan { method: Method::Separate, width, ..conversion.plan };
    let request = Request { plans: vec![plan], ..request.clone() };
    let instead = factors(session, donor, &request, Some(calibration), scratch)?;
    Ok(instead.trials[instead.chosen].kl)
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
        Method::Separate | Method::Joint => {}
    }
    let record = record(donor, request, calibration, conversion)?;
    let plan = FolderPlan {
        donor: &donor.model,
        section,
        factors: &conversion.factors,
        dtype: request.dtype,
        extra: vec![
            ("shrink.json".into(), format!("{record:#}\n").into_bytes()),
            ("README.md".into(), card(donor, calibration, conversion).into_bytes()),
        ],
        max_shard_bytes: MAX_SHARD_BYTES,
    };
    let task = std::sync::Mutex::new(session.ui.task("writing (MB)", 0));
    let on_bytes = |done: u64, total: u64| {
        if let Ok(mut task) = task.lock() {
            task.at(done >> 20, total >> 20);
        }
    };
    let written = write_folder(&plan, output, &on_bytes)?;
    if let Ok(task) = task.into_inner() {
        task.finish();
    }
    Ok(written)
}

impl Calibration {
    /// The windows as the library takes them.
    pub fn text(&self) -> Text<'_> {
        Text { fit: &self.windows, held_back: &self.held_back }
    }
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
