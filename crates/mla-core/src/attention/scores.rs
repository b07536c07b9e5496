//! The weighted sum of values: `softmax(q kᵀ / √d_head) v`, with query heads sharing kv heads.

use burn::tensor::Tensor;
use burn::tensor::module::attention;
use burn::tensor::ops::AttentionModuleOptions;

use super::frame::Sight;

/// Attends with grouped heads; query head `h` reads kv head `h / (n_heads / n_kv_heads)`.
///
/// # Shapes
/// - `q`: `[batch, n_heads, t_q, d_head]`, `k`, `v`: `[batch, n_kv_heads, t_kv, d_head]` → `[batch, t_q, n_heads · d_head]`
pub(super) fn attend(q: Tensor<4>, k: Tensor<4>, v: Tensor<4>, sight: &Sight) -> Tensor<3> {
    let [batch, n_heads, t_q, d_head] = q.dims();
    let n_kv_heads = k.dims()[1];
    let group = n_heads / n_kv_heads;
    let options = AttentionModuleOptions { is_causal: matches!(sight, Sight::Causal), ..Default::default() };
    let hidden = match sight {
        Sight::Causal => None,
        Sight::Hidden(mask) => Some(mask.as_ref().clone()),
    };
    let out = if t_q == 1 {
        // One query: a group's heads become rows that share a kv head, and nothing is repeated. The only query sees
        // every column that is not hidden, so causality is no constraint.
        let rows = q.reshape([batch, n_kv_heads, group, d_head]);
        attention(rows, k, v, hidden, None, AttentionModuleOptions { is_causal: false, ..options })
    } else {
        attention(q, repeat_heads(k, group), repeat_heads(v, group), hidden, None, options)
    };
    join_heads(out.reshape([batch, n_heads, t_q, d_head]))
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
    use burn::tensor::activation::softmax;
    use burn::tensor::{Bool, Device, Distribution};

    /// Attention written out, the oracle of [`attend`].
    fn attend_plainly(q: Tensor<4>, k: Tensor<4>, v: Tensor<4>, hidden: Tensor<4, Bool>) -> Tensor<3> {
        let [batch, n_heads, t_q, d_head] = q.dims();
        let group = n_heads / k.dims()[1];
        let t_kv = k.dims()[2];
        let scores = q.matmul(repeat_heads(k, group).swap_dims(2, 3)) / (d_head as f64).sqrt();
        let scores = scores.mask_fill(hidden.expand([batch, n_heads, t_q, t_kv]), -1e30);
        softmax(scores, 3).matmul(repeat_heads(v, group)).swap_dims(1, 2).reshape([
            batch,
            t_q,
            n_heads * d_head,
        ])
    }

    #[test]
    fn fused_attention_equals_attention_written_out() {
        let device = Device::default();
        device.seed(3);
        let random = |heads: usize, t: usize| {
            Tensor::<4>::random([2, heads, t, 16], Distribution::Normal(0.0, 1.5), &device)
        };
        for (t_q, t_kv) in [(7, 7), (3, 9), (1, 5), (40, 700)] {
            let (q, k, v) = (random(6, t_q), random(2, t_kv), random(2, t_kv));
            let causal =
                Tensor::<2, Bool>::tril_mask([t_q, t_kv], (t_kv - t_q) as i64, &device).unsqueeze::<4>();
            let plain = attend_plainly(q.clone(), k.clone(), v.clone(), causal.clone());
            for sight in [Sight::Causal, Sight::Hidden(Box::new(causal))] {
                let gap: f32 = (attend(q.clone(), k.clone(), v.clone(), &sight) - plain.clone())
                    .abs()
                    .max()
                    .into_scalar();
                assert!(gap < 2e-5, "t_q {t_q}, t_kv {t_kv}, {sight:?}: {gap}");
            }
        }
    }
}
