//! Which models are measured, and with what.

use clap::ValueEnum;
use serde_json::Value;

/// Dimensions that `decoupled_rope` keeps here.
const D_ROPE: usize = 16;
/// Every method but auto, which only chooses among them.
const METHODS: &[&str] = &["separate", "xkv", "joint", "decoupled_rope", "cascade"];
const BOTH_RANKS: &[&str] = &["uniform", "global"];

/// A model of each attention family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Subject {
    /// SmolLM2-135M-Instruct
    Llama,
    /// SmolLM2 with a K and V head for each query head
    Mha,
    /// SmolLM2's weights under Qwen2's biases
    Qwen2,
    /// A small GPT-2, trained by xtask/bench/gpt2.py
    Gpt2,
}

/// One process: every combination of what it lists.
#[derive(Clone, Debug, PartialEq)]
pub struct Call {
    ratios: Vec<f64>,
    methods: Vec<&'static str>,
    objectives: &'static [&'static str],
    ranks: &'static [&'static str],
    cascade_windows: &'static [usize],
}

impl Subject {
    /// All, in the order of the page.
    pub const ALL: &'static [Self] = &[Self::Llama, Self::Mha, Self::Qwen2, Self::Gpt2];

    /// The name on the command line and in the tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Mha => "mha",
            Self::Qwen2 => "qwen2",
            Self::Gpt2 => "gpt2",
        }
    }

    /// Its folder among the models.
    pub fn folder(self) -> &'static str {
        match self {
            Self::Llama => "smollm2-135m-instruct",
            Self::Mha => "smollm2-as-mha",
            Self::Qwen2 => "smollm2-as-qwen2",
            Self::Gpt2 => "gpt2-small-trained",
        }
    }

    /// What a reader must know of it.
    pub fn about(self) -> &'static str {
        match self {
            Self::Llama => {
                "SmolLM2-135M-Instruct: 30 layers, 9 query heads over 3 K and V heads of 64 (grouped)."
            }
            Self::Mha => {
                "SmolLM2-135M-Instruct with each K and V head written out three times, one for each query head: the same \
                 function with 9 K and V heads. Two thirds of this cache are copies, so 2x says little and 8x is about \
                 what 2.7x is for llama."
            }
            Self::Qwen2 => {
                "SmolLM2-135M-Instruct's weights in a Qwen2 checkpoint whose q, k and v biases are not zero: the biased \
                 path on trained weights."
            }
            Self::Gpt2 => {
                "A GPT-2 (6 layers of 192, 6 heads, learned positions, biases, fused c_attn) of 3.2 M weights, trained by \
                 xtask/bench/gpt2.py for 12 M tokens of Austen and of State of the Union addresses to 1994."
            }
        }
    }

    /// How to get it where it is not there, if that is up to us.
    pub fn remedy(self) -> &'static str {
        match self {
            Self::Gpt2 => "; python xtask/bench/gpt2.py MODELS/text MODELS/gpt2-small-trained makes it",
            _ => "",
        }
    }

    /// What is run on it: every method under every metric and allocation, a process a metric; on llama also a narrow window.
    /// On mha, where K and V are three times as wide and a fit takes minutes, the metrics after the first have a process a
    /// ratio, so that less is lost when one is stopped.
    pub fn calls(self, d_kv: Option<usize>, ratios: &[f64], quick: bool) -> Vec<Call> {
        let call = |methods: &[&'static str], objectives, ranks, cascade_windows| Call {
            ratios: ratios.to_vec(),
            methods: methods.to_vec(),
            objectives,
            ranks,
            cascade_windows,
        };
        // A window reaches at most to the first layer.
        let wide: &[usize] = if self == Self::Gpt2 { &[5] } else { &[7] };
        let both: &[usize] = if self == Self::Llama { &[3, 7] } else { wide };
        let calls = match quick {
            true => vec![
                call(&["separate", "cascade"], &["fisher"], BOTH_RANKS, &[3]),
                call(&["separate"], &["mse"], &["uniform"], &[]),
            ],
            false => vec![
                call(METHODS, &["fisher"], BOTH_RANKS, both),
                call(METHODS, &["mse"], BOTH_RANKS, wide),
                call(METHODS, &["attention"], BOTH_RANKS, wide),
            ],
        };
        let calls = calls.into_iter().flat_map(|call| call.split(d_kv));
        match self {
            Self::Mha if !quick => calls.flat_map(Call::by_ratio).collect(),
            _ => calls.collect(),
        }
    }
}

impl Call {
    /// A call a ratio, but for the Fisher metric, whose gradients all ratios share.
    fn by_ratio(self) -> Vec<Self> {
        if self.objectives.contains(&"fisher") {
            return vec![self];
        }
        self.ratios.iter().map(|&ratio| Self { ratios: vec![ratio], ..self.clone() }).collect()
    }

    /// Leaves `decoupled_rope` out of the ratios at which nothing would be left to factorise.
    fn split(self, d_kv: Option<usize>) -> Vec<Self> {
        let fits = |ratio: &f64| d_kv.is_none_or(|d_kv| (d_kv as f64 / ratio) as usize > D_ROPE);
        let (with, without): (Vec<f64>, Vec<f64>) = self.ratios.iter().partition(|ratio| fits(ratio));
        if !self.methods.contains(&"decoupled_rope") || without.is_empty() {
            return vec![self];
        }
        let others = self.methods.iter().copied().filter(|method| *method != "decoupled_rope").collect();
        let calls =
            [Self { ratios: without, methods: others, ..self.clone() }, Self { ratios: with, ..self }];
        calls.into_iter().filter(|call| !call.ratios.is_empty()).collect()
    }

    /// Its part of the command line.
    pub fn arguments(&self) -> Vec<String> {
        let ratios: Vec<String> = self.ratios.iter().map(f64::to_string).collect();
        let mut args = vec!["--compression-ratio".to_owned(), ratios.join(",")];
        for (flag, values) in
            [("--method", &self.methods[..]), ("--objective", self.objectives), ("--ranks", self.ranks)]
        {
            args.extend([flag.to_owned(), values.join(",")]);
        }
        if self.methods.contains(&"decoupled_rope") {
            args.extend(["--d-rope".to_owned(), D_ROPE.to_string()]);
        }
        if self.methods.contains(&"cascade") {
            let windows: Vec<String> = self.cascade_windows.iter().map(usize::to_string).collect();
            args.extend(["--cascade-window".to_owned(), windows.join(",")]);
        }
        args
    }
}

/// The width of K in a `config.json` of the families measured here.
pub fn d_kv(config: &Value) -> Option<usize> {
    let size = |key: &str| config[key].as_u64().map(|size| size as usize);
    let grouped = || {
        let heads = size("num_attention_heads")?;
        let d_head = size("head_dim").or_else(|| Some(size("hidden_size")? / heads))?;
        Some(size("num_key_value_heads").unwrap_or(heads) * d_head)
    };
    size("n_embd").or_else(grouped)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn wide_models_have_a_process_a_ratio_but_for_the_gradients() {
        let calls = Subject::Mha.calls(Some(576), &[2.0, 4.0, 8.0], false);
        assert_eq!(calls.len(), 1 + 3 + 3);
        assert!(calls[4].arguments().join(" ").starts_with("--compression-ratio 2 --method separate,xkv"));
    }

    #[test]
    fn a_process_serves_a_metric_where_everything_fits() {
        let calls = Subject::Llama.calls(Some(192), &[2.0, 4.0, 8.0], false);
        let [fisher, mse, attention] = calls.as_slice() else { panic!("three calls: {calls:?}") };
        assert_eq!(
            fisher.arguments().join(" "),
            "--compression-ratio 2,4,8 --method separate,xkv,joint,decoupled_rope,cascade --objective fisher --ranks \
             uniform,global --d-rope 16 --cascade-window 3,7"
        );
        assert!(
            mse.arguments()
                .join(" ")
                .contains("--objective mse --ranks uniform,global --d-rope 16 --cascade-window 7")
        );
        assert_eq!(attention.objectives, ["attention"]);
    }

    #[test]
    fn kept_dimensions_that_do_not_fit_are_left_out_at_that_ratio_only() {
        // 128 / 8 = 16 numbers, of which none would be left.
        let calls = Subject::Llama.calls(Some(128), &[2.0, 8.0], false);
        let has: Vec<_> = calls[..2]
            .iter()
            .map(|call| (call.ratios[0], call.methods.contains(&"decoupled_rope")))
            .collect();
        assert_eq!(has, [(8.0, false), (2.0, true)]);
        let nowhere = Subject::Llama.calls(Some(16), &[2.0], false);
        assert!(nowhere.len() == 3 && !nowhere[0].arguments().contains(&"--d-rope".to_owned()));
    }

    #[test]
    fn the_width_of_k_is_read_from_every_family() {
        assert_eq!(d_kv(&json!({ "n_embd": 192, "n_head": 6 })), Some(192));
        let llama = json!({ "hidden_size": 576, "num_attention_heads": 9, "num_key_value_heads": 3 });
        assert_eq!(d_kv(&llama), Some(192));
        assert_eq!(d_kv(&json!({ "num_attention_heads": 4, "head_dim": 16 })), Some(64));
        assert_eq!(d_kv(&json!({})), None);
    }
}
