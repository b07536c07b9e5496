//! Factors made by hand, laid over a donor: how a method of your own starts.
//!
//! ```sh
//! cargo run --release -p calib --example custom_init
//! ```

use burn::tensor::{Device, Distribution, Tensor};
use calib::factorise::{Factorisation, Factors, output_moment};
use calib::linalg::Mat64;
use calib::metric::Metric;
use mla_core::decoder::{
    Activation, AttentionKind, Biases, BlockKind, HeadKind, LatentConfig, LatentWidth, LayerConfig,
    MlpConfig, MlpKind, NormKind, PositionKind, Scales,
};
use mla_core::positions::RopeConfig;
use mla_core::{
    CacheDtype, Decoder, DecoderConfig, LayerSlot, Matrix, Padding, Part, Patch, Slot, WeightMap,
    WeightSource,
};

fn main() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let device = Device::flex();
    device.seed(7);
    let donor = random_donor(&device);
    let read = |slot| Ok::<_, mla_core::SourceError>(Matrix::from_tensor(&donor.matrix(slot, &device)?));

    // The spectrum of a weight on its own (M = I, C = I): what each rank would keep of it.
    let w_k = Mat64::from_matrix(&read(Slot::Layer(0, LayerSlot::Key(Part::Weight)))?);
    let found = Factorisation::new(&output_moment(&w_k, None), &Metric::Identity)?;
    let mut text = String::from("rank  energy kept  loss\n");
    for rank in [2, 4, 8, 12, 16] {
        text +=
            &format!("{rank:4}  {:10.1}%  {:.3}\n", 100.0 * found.energy_kept(rank), found.discarded(rank));
    }
    text += &format!("rank that keeps 90%: {}\n", found.rank_for_energy(0.9));

    // Factors of your own go into a map, with the converted graph as its configuration, and over the donor.
    let rank = 12;
    let mut config = donor.config().clone();
    let width = LatentWidth::Split { d_latent_k: rank, d_latent_v: rank };
    config.layers[0].attention = AttentionKind::Latent(LatentConfig::alone(0, width));
    let mut patch = WeightMap::new(config);
    let slots = [
        (LayerSlot::Key(Part::Weight), LayerSlot::DownKey, LayerSlot::UpKey),
        (LayerSlot::Value(Part::Weight), LayerSlot::DownValue, LayerSlot::UpValue),
    ];
    for (weight, down, up) in slots {
        let w = Mat64::from_matrix(&read(Slot::Layer(0, weight))?);
        let found = Factorisation::new(&output_moment(&w, None), &Metric::Identity)?;
        let Factors { w_up, w_down } = found.factors(&w, rank);
        text += &format!("|W_upT W_up - I| = {:.0e}\n", w_up.orthonormality_residual());
        patch.insert_layer(0, up, w_up.to_matrix());
        patch.insert_layer(0, down, w_down.to_matrix());
    }
    let converted = Decoder::load(&patch.over(&donor), &device)?;
    let original = Decoder::load(&donor, &device)?;
    let ids = [vec![1, 5, 3, 2]];
    let logits = |decoder: &Decoder| decoder.forward(&ids, &Padding::none(1));
    let gap: f32 = (logits(&converted) - logits(&original)).abs().max().into_scalar();
    text += &format!(
        "cache {:.2}x smaller, largest change of a logit {gap:.3}\n",
        converted.config().compression_ratio()
    );
    std::io::Write::write_all(&mut std::io::stdout(), text.as_bytes())?;
    Ok(())
}

/// One layer, two query heads on one kv head of 16, random weights.
fn random_donor(device: &Device) -> WeightMap {
    let (d_model, d_ff, vocab_size) = (32, 64, 50);
    let mut donor = WeightMap::new(DecoderConfig {
        d_model,
        n_heads: 2,
        n_kv_heads: 1,
        d_head: 16,
        vocab_size,
        max_positions: 64,
        norm: NormKind::Rms,
        norm_eps: 1e-5,
        block: BlockKind::PreNorm,
        position: PositionKind::Rope(vec![RopeConfig::plain(10_000.0, 16)]),
        scales: Scales::default(),
        biases: Biases { qkv: false, output: false, mlp: false },
        head: HeadKind::Tied,
        cache_dtype: CacheDtype::F32,
        layers: vec![LayerConfig::plain(
            16,
            Some(0),
            MlpConfig { kind: MlpKind::Gated(Activation::Silu), d_ff },
        )],
    });
    let random = |rows, cols| {
        Matrix::from_tensor(&Tensor::<2>::random([rows, cols], Distribution::Normal(0.0, 0.2), device))
    };
    let ones = || Matrix::new(1, d_model, vec![1.0; d_model]);
    donor.insert(Slot::TokenEmbedding, random(vocab_size, d_model));
    donor.insert(Slot::FinalNorm(Part::Weight), ones());
    let layer = [
        (LayerSlot::InputNorm(Part::Weight), ones()),
        (LayerSlot::MlpNorm(Part::Weight), ones()),
        (LayerSlot::Query(Part::Weight), random(32, d_model)),
        (LayerSlot::Key(Part::Weight), random(16, d_model)),
        (LayerSlot::Value(Part::Weight), random(16, d_model)),
        (LayerSlot::Output(Part::Weight), random(d_model, 32)),
        (LayerSlot::Gate(Part::Weight), random(d_ff, d_model)),
        (LayerSlot::Up(Part::Weight), random(d_ff, d_model)),
        (LayerSlot::Down(Part::Weight), random(d_model, d_ff)),
    ];
    layer.into_iter().for_each(|(slot, matrix)| donor.insert_layer(0, slot, matrix));
    donor
}
