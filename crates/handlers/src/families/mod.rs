//! One file an architecture: its configuration and where its tensors lie.
//!
//! What they share: `skeleton.rs` reads the fields that nearly all have, `rope.rs` rotary embeddings, and `table.rs` names the
//! tensors of a LLaMA-like checkpoint.

mod gemma2;
mod gemma3;
mod gpt2;
mod gpt_neox;
mod gpt_oss;
mod granite;
mod llama;
mod ministral;
mod mistral;
mod mixtral;
mod olmo2;
mod olmo3;
mod phi3;
mod qwen2;
mod qwen3;
mod qwen3_moe;
mod rope;
mod skeleton;
mod smollm3;
mod table;

pub use gemma2::Gemma2;
pub use gemma3::Gemma3;
pub use gpt_neox::GptNeoX;
pub use gpt_oss::GptOss;
pub use gpt2::Gpt2;
pub use granite::Granite;
pub use llama::Llama;
pub use ministral::Ministral;
pub use mistral::Mistral;
pub use mixtral::Mixtral;
pub use olmo2::Olmo2;
pub use olmo3::Olmo3;
pub use phi3::Phi3;
pub use qwen2::Qwen2;
pub use qwen3::Qwen3;
pub use qwen3_moe::Qwen3Moe;
pub use smollm3::SmolLm3;
