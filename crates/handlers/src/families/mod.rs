//! One file an architecture: its configuration and where its tensors lie.

mod gpt2;
mod llama;
mod mistral;
mod mixtral;
mod qwen2;

pub use gpt2::Gpt2;
pub use llama::Llama;
pub use mistral::Mistral;
pub use mixtral::Mixtral;
pub use qwen2::Qwen2;
