//! How scores come about and what they weigh: `softmax(cap(scale · q kᵀ)) v`, with query heads sharing kv heads.
//!
//! [`Scores`] is what a layer adds up by, the same on every path: over keys and values as a whole (here), over tiles of
//! latents (`tiled.rs`), in the CPU's kernel (`host/`) and in that of CUDA and wgpu (`cube/`).

use burn::module::{Module, Param};
use burn::tensor::activation::softmax;
use burn::tensor::module::attention;
use burn::tensor::ops::AttentionModuleOptions;
use burn::tensor::{Bool, Tensor};

use super::frame::Sight;
use super::tiled::HIDDEN;

/// Queries whose scores are written out at a time.
const QUERIES: usize = 512;

/// How a layer scores.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ScoreConfig {
    /// What `q · k` is multiplied by.
    pub scale: f64,
    /// Scores are brought into `±softcap` by `softcap · tanh(score / softcap)` (Gemma 2, Riviere et al. 2024, §2).
    pub softcap: Option<f64>,
    /// Whether each head has a learned logit beside its scores that takes weight and gives no value: an attention sink
    /// (gpt-oss 2025; Xiao et al. 2024 found heads to make one of the first token).
    pub sinks: bool,
}

impl ScoreConfig {
    /// `q · k / √d_head` and nothing else (Vaswani et al. 2017, eq. 1).
    pub fn plain(d_head: usize) -> Self {
        Self { scale: 1.0 / (d_head as f64).sqrt(), softcap: None, sinks: false }
    }
}

/// A layer's scores and sums.
#[derive(Module, Debug)]
pub struct Scores {
    /// What `q · k` is multiplied by.
    #[module(skip)]
    pub scale: f64,
    /// The bound of a score; `None` for none.
    #[module(skip)]
    pub softcap: Option<f64>,
    /// A logit a query head: `[n_heads]`.
    pub sinks: Option<Param<Tensor<1>>>,
}

impl Scores {
    /// Scores of a configuration without sinks.
    ///
    /// # Panics
    /// If it has sinks, which are weights.
    pub fn new(config: ScoreConfig) -> Self {
        assert!(!config.sinks, "sinks are weights");
        Self { scale: config.scale, softcap: config.softcap, sinks: None }
    }

    /// Whether softmax alone makes weights of scores.
    pub(super) fn is_plain(&self) -> bool {
        self.softcap.is_none() && self.sinks.is_none()
    }

    /// Queries with the scale in them.
    ///
    /// # Shapes
    /// - any
    pub(super) fn scaled<const D: usize>(&self, q: Tensor<D>) -> Tensor<D> {
        q * self.scale
    }

    /// Scores of scaled queries, brought under the bound.
    ///
    /// # Shapes
    /// - any
    pub(super) fn capped<const D: usize>(&self, scores: Tensor<D>) -> Tensor<D> {
        match self.softcap {
            None => scores,
            Some(cap) => (scores / cap).tanh() * cap,
        }
    }

    /// The sinks a row of `[n_heads · t_q]`: `[1, rows, 1]`.
    pub(super) fn sink_rows(&self, t_q: usize) -> Option<Tensor<3>> {
        let sinks = self.sinks.as_ref()?.val();
        let [n_heads] = sinks.dims();
        Some(sinks.reshape([n_heads, 1]).expand([n_heads, t_q]).reshape([1, n_heads * t_q, 1]))
    }

    /// Attends with grouped heads; query head `h` reads kv head `h / (n_heads / n_kv_heads)`.
    ///
    /// # Shapes
    /// - `q`: `[batch, n_heads, t_q, d_score]`, `k`: `[batch, n_kv_heads, t_kv, d_score]`, `v`: `[batch, n_kv_heads, t_kv, d_head]` →
    ///   `[batch, t_q, n_heads · d_head]`
    pub(super) fn attend(&self, q: Tensor<4>, k: Tensor<4>, v: Tensor<4>, sight: &Sight) -> Tensor<3> {
        match self.is_plain() {
            true => self.fused(q, k, v, sight),
            false => self.written_out(q, k, v, sight),
        }
    }

    /// By the backend's own attention, which knows neither sinks nor a bound on every device.
    fn fused(&self, q: Tensor<4>, k: Tensor<4>, v: Tensor<4>, sight: &Sight) -> Tensor<3> {
        let [batch, n_heads, t_q, d_score] = q.dims();
        let [_, n_kv_heads, _, d_head] = v.dims();
        let group = n_heads / n_kv_heads;
        // The backend divides by √d_score; a scale of its own would take it off its fast path.
        let more = self.scale * (d_score as f64).sqrt();
        let q = if (more - 1.0).abs() < 1e-12 { q } else { q * more };
        let options =
            AttentionModuleOptions { is_causal: matches!(sight, Sight::Causal), ..Default::default() };
        let hidden = match sight {
            Sight::Causal => None,
            Sight::Hidden(mask) => Some(mask.as_ref().clone()),
        };
        let out = if t_q == 1 {
            // One query: a group's heads become rows that share a kv head, and nothing is repeated. The only query sees
            // every column that is not hidden, so causality is no constraint.
            let rows = q.reshape([batch, n_kv_heads, group, d_score]);
            attention(rows, k, v, hidden, None, AttentionModuleOptions { is_causal: false, ..options })
        } else {
            attention(q, repeat_heads(k, group), repeat_heads(v, group), hidden, None, options)
        };
        join_heads(out.reshape([batch, n_heads, t_q, d_head]))
    }

    /// Product, bound, softmax and sum one after the other, for some hundred queries at a time.
    fn written_out(&self, q: Tensor<4>, k: Tensor<4>, v: Tensor<4>, sight: &Sight) -> Tensor<3> {
        let [batch, n_heads, t_q, _] = q.dims();
        let (group, t_kv) = (n_heads / k.dims()[1], k.dims()[2]);
        let (k, v) = (repeat_heads(k, group).swap_dims(2, 3), repeat_heads(v, group));
        let q = self.scaled(q);
        let some = |start: usize| {
            let count = QUERIES.min(t_q - start);
            let scores = self.capped(q.clone().narrow(2, start, count).matmul(k.clone()));
            let hidden = match sight {
                Sight::Hidden(mask) => mask.as_ref().clone().narrow(2, start, count),
                Sight::Causal => {
                    let seen_by_first = (t_kv - t_q + start) as i64;
                    Tensor::<2, Bool>::tril_mask([count, t_kv], seen_by_first, &q.device()).unsqueeze::<4>()
                }
            };
            let scores = scores.mask_fill(hidden.expand([batch, n_heads, count, t_kv]), HIDDEN);
            let weights = match &self.sinks {
                None => softmax(scores, 3),
                Some(sinks) => {
                    let sinks = sinks.val().reshape([1, n_heads, 1, 1]).expand([batch, n_heads, count, 1]);
                    softmax(Tensor::cat(vec![scores, sinks], 3), 3).narrow(3, 0, t_kv)
                }
            };
            weights.matmul(v.clone())
        };
        join_heads(Tensor::cat((0..t_q).step_by(QUERIES).map(some).collect(), 2))
    }
}

/// `[batch, n_kv_heads, t, d_head]` → `[batch, n_kv_heads · group, t, d_head]`, each head `group` times in a row.
fn repeat_heads(x: Tensor<4>, group: usize) -> Tensor<4> {
    if group == 1 {
        return x;
    }
    let [batch, n_kv_heads, t, d_head] = x.dims();
    x.reshape([batch, n_kv_heads, 1, t, d_head]).expand([batch, n_kv_heads, group, t, d_head]).reshape([
        batch,
        n_kv_heads * group,
        t,
        d_head,
    ])
}

/// Joins heads into the last axis: `[batch, heads, t, d_head]` → `[batch, t, heads · d_head]`.
pub(super) fn join_heads(x: Tensor<4>) -> Tensor<3> {
    let [batch, heads, t, d_head] = x.dims();
    x.swap_dims(1, 2).reshape([batch, t, heads * d_head])
}

/// Splits the last axis into heads: `[batch, t, heads · d_head]` → `[batch, heads, t, d_head]`.
pub(super) fn split_heads(x: Tensor<3>, heads: usize) -> Tensor<4> {
    let [batch, t, width] = x.dims();
    x.reshape([batch, t, heads, width / heads]).swap_dims(1, 2)
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::{Device, Distribution};

    /// Attention a number at a time, the oracle.
    fn by_hand(scores: &Scores, q: &Tensor<4>, k: &Tensor<4>, v: &Tensor<4>) -> Vec<f64> {
        let host = |x: &Tensor<4>| x.clone().into_data().iter::<f64>().collect::<Vec<_>>();
        let ([batch, n_heads, t_q, d], [_, n_kv_heads, t_kv, _]) = (q.dims(), k.dims());
        let sinks: Option<Vec<f64>> =
            scores.sinks.as_ref().map(|sinks| sinks.val().into_data().iter::<f64>().collect());
        let (q, k, v) = (host(q), host(k), host(v));
        let mut out = vec![0.0; batch * t_q * n_heads * d];
        for b in 0..batch {
            for h in 0..n_heads {
                let kv = b * n_kv_heads + h / (n_heads / n_kv_heads);
                for i in 0..t_q {
                    let query = &q[((b * n_heads + h) * t_q + i) * d..][..d];
                    let seen = t_kv - t_q + i + 1;
                    let dot = |j: usize| -> f64 {
                        let key = &k[(kv * t_kv + j) * d..][..d];
                        let score = scores.scale * query.iter().zip(key).map(|(a, b)| a * b).sum::<f64>();
                        scores.softcap.map_or(score, |cap| cap * (score / cap).tanh())
                    };
                    let weights: Vec<f64> = (0..seen).map(|j| dot(j).exp()).collect();
                    let sink = sinks.as_ref().map_or(0.0, |sinks| sinks[h].exp());
                    let total = weights.iter().sum::<f64>() + sink;
                    for (j, weight) in weights.iter().enumerate() {
                        let value = &v[(kv * t_kv + j) * d..][..d];
                        let out = &mut out[((b * t_q + i) * n_heads + h) * d..][..d];
                        out.iter_mut().zip(value).for_each(|(out, x)| *out += weight / total * x);
                    }
                }
            }
        }
        out
    }

    #[test]
    fn attention_of_every_kind_equals_attention_by_hand() {
        let device = Device::default();
        device.seed(3);
        let random = |heads: usize, t: usize| {
            Tensor::<4>::random([2, heads, t, 16], Distribution::Normal(0.0, 1.5), &device)
        };
        let sinks = Tensor::from_data([0.5, -1.0, 2.0, 0.0, 3.0, -4.0], &device);
        let plain = Scores::new(ScoreConfig::plain(16));
        let sunk = Some(Param::from_tensor(sinks));
        for scores in [
            plain.clone(),
            Scores { scale: 0.3, ..plain.clone() },
            Scores { softcap: Some(2.0), ..plain.clone() },
            Scores { sinks: sunk.clone(), ..plain.clone() },
            Scores { scale: 0.4, softcap: Some(3.0), sinks: sunk },
        ] {
            for (t_q, t_kv) in [(7, 7), (3, 9), (1, 5), (40, 700), (520, 530)] {
                let (q, k, v) = (random(6, t_q), random(2, t_kv), random(2, t_kv));
                let right = by_hand(&scores, &q, &k, &v);
                let causal = Tensor::<2, Bool>::tril_mask([t_q, t_kv], (t_kv - t_q) as i64, &device);
                for sight in [Sight::Causal, Sight::Hidden(Box::new(causal.unsqueeze::<4>()))] {
                    let ours = scores.attend(q.clone(), k.clone(), v.clone(), &sight).into_data();
                    let gap = ours.iter::<f64>().zip(&right).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
                    assert!(gap < 2e-5, "{scores:?}, t_q {t_q}, t_kv {t_kv}: {gap}");
                }
            }
        }
    }
}
