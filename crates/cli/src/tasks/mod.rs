//! What `shrink eval --task` measures, a file a task: texts are composed and tokenised here, `train` asks and counts.
//!
//! [`exam`] is what every task needs: the models, their tokenizer, text, and the options that belong to the task.

mod agreement;
mod copy;
mod exam;
mod needle;
mod retrieval;

use crate::args::{EvalArgs, Task};
use crate::session::Session;
use exam::Exam;

/// Measures a model on a task.
///
/// # Errors
/// When an option belongs to another task, a model or text cannot be had, or a prompt does not fit the context.
pub fn run(session: &Session, args: &EvalArgs, task: Task) -> anyhow::Result<()> {
    let exam = Exam::open(session, args, task)?;
    match task {
        Task::Needle => needle::run(&exam),
        Task::Copy => copy::run(&exam),
        Task::Retrieval => retrieval::run(&exam),
        Task::Agreement => agreement::run(&exam),
    }
}
