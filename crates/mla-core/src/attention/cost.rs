//! What attention over latents costs, counted, and the cheaper of two ways.
//!
//! Keys and values are linear in the latents, so a sum over heads can be taken on either side of `W_up`:
//!
//! - **rebuilt**: a tile of K (or V) is made from its latents, then read as any attention reads it. A product of
//!   `read · d_kv` a token, whatever the number of queries;
//! - **absorbed**: `qᵀ (W_uk c) = (W_ukᵀ q)ᵀ c`, `Σ aᵢ (W_uv cᵢ) = W_uv (Σ aᵢ cᵢ)` (DeepSeek-V2 2024, §2.1): `W_up` is
//!   multiplied once a query, and a head reads the latents themselves. `read` numbers a token and query head in place of
//!   `d_head`.
//!
//! So few queries (decoding) absorb and many (prefill) rebuild. A rotation between `W_uk` and the score depends on the
//! token, so rotated keys are always rebuilt. So are keys with a bias whose scores are bounded or share their weight with a
//! sink: elsewhere the bias adds the same to all scores of a query, and softmax removes it.

/// Which side of `W_up` a sum over tokens is taken on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Path {
    /// Keys or values are made from their latents, a tile at a time.
    Rebuilt,
    /// Queries, or weighted sums, are taken to the latents.
    Absorbed,
}

/// The way of keys and that of values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Paths {
    /// How scores are made.
    pub keys: Path,
    /// How the weighted sum is made.
    pub values: Path,
}

/// One layer's part of a pass, for one sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Work {
    /// Query heads.
    pub n_heads: usize,
    /// Key/value heads.
    pub n_kv_heads: usize,
    /// Width of a head.
    pub d_head: usize,
    /// Latent numbers a token that keys are made of, those of other layers too.
    pub read_k: usize,
    /// Latent numbers a token that values are made of.
    pub read_v: usize,
    /// Whether keys have to be rebuilt: a rotation stands behind `W_uk`, or a bias that softmax does not remove.
    pub keys_rebuilt: bool,
    /// New tokens.
    pub t_q: usize,
    /// Tokens that are read.
    pub t_kv: usize,
}

impl Work {
    /// Multiply-adds of scores, or of the weighted sum, over all `t_kv` tokens: `n_heads · t_q` rows of `width` numbers a
    /// token, and what `W_up` takes.
    ///
    /// # Shapes
    /// - `read`: the latent numbers behind a key, or a value
    pub fn operations(&self, path: Path, read: usize) -> usize {
        let rows = self.n_heads * self.t_q;
        let d_kv = self.n_kv_heads * self.d_head;
        match path {
            Path::Rebuilt => self.t_kv * (read * d_kv + rows * self.d_head),
            Path::Absorbed => rows * read * (self.t_kv + self.d_head),
        }
    }

    /// The cheaper paths.
    pub fn paths(&self) -> Paths {
        let cheaper =
            |read| match self.operations(Path::Absorbed, read) <= self.operations(Path::Rebuilt, read) {
                true => Path::Absorbed,
                false => Path::Rebuilt,
            };
        let keys = if self.keys_rebuilt { Path::Rebuilt } else { cheaper(self.read_k) };
        Paths { keys, values: cheaper(self.read_v) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// GPT-2 medium at a quarter of the cache.
    const GPT2: Work = Work {
        n_heads: 16,
        n_kv_heads: 16,
        d_head: 64,
        read_k: 256,
        read_v: 256,
        keys_rebuilt: false,
        t_q: 1,
        t_kv: 8192,
    };

    #[test]
    fn one_query_absorbs_and_many_rebuild() {
        let absorbed = Paths { keys: Path::Absorbed, values: Path::Absorbed };
        assert_eq!(GPT2.paths(), absorbed);
        assert_eq!(GPT2.operations(Path::Absorbed, 256), 16 * 256 * (8192 + 64));
        assert_eq!(GPT2.operations(Path::Rebuilt, 256), 8192 * (256 * 1024 + 1024));
        let prefill = Work { t_q: 512, t_kv: 512, ..GPT2 };
        assert_eq!(prefill.paths(), Paths { keys: Path::Rebuilt, values: Path::Rebuilt });
    }

    #[test]
    fn rotated_keys_are_rebuilt() {
        let rotated = Work { keys_rebuilt: true, ..GPT2 };
        assert_eq!(rotated.paths(), Paths { keys: Path::Rebuilt, values: Path::Absorbed });
    }
}
