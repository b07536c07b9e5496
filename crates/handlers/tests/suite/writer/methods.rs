//! Folders of every method: the same bits after loading, each tensor under its name, fetched and stored once.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::BTreeMap;

use burn::tensor::Device;
use handlers::{Error, Existing, FolderPlan, MlaSection, Output, write_folder};
use mla_core::attention::{Attention, Projections};
use mla_core::{DecoderConfig, LayerSlot, Matrix, Part, Patch, Slot, SourceError, WeightMap, WeightSource};

use super::{place, plan, prompt, written};
use crate::conversion::{exact_joint, exact_shared, needed, random, random_factors, section};
use crate::graphs::{cascade, graphs, groups, joint, reading};
use crate::hostile::refuses;
use crate::scratch::{Raw, Scratch, read_tensors};
use crate::twin::{load, logits, open, twins};

/// A donor of six layers, so that groups and windows have neighbours.
const DEEP: &str = "demo";

fn ids(name: &str) -> Vec<u32> {
    if name == DEEP { vec![3, 1, 4, 1, 5, 9, 2, 6] } else { prompt(name) }
}

#[test]
fn every_kind_of_conversion_comes_back_bit_for_bit() {
    for name in twins().into_iter().chain([DEEP]) {
        let donor = open(name);
        for (kind, config) in graphs(donor.config()) {
            for store_original_weights in [false, true] {
                let what = format!("{name}, {kind}, originals {store_original_weights}");
                let factors = random_factors(config.clone(), 7);
                let section = MlaSection { store_original_weights, ..section(&factors) };
                let scratch = Scratch::empty();
                let model =
                    written(&scratch, &FolderPlan { section: section.clone(), ..plan(&donor, &factors) });
                assert_eq!(model.config(), &config, "{what}");
                assert_eq!(model.section(), Some(&section), "{what}");
                assert_eq!(model.unused(), [""; 0], "{what}");
                let in_memory = logits(&load(&factors.over(&donor)), &ids(name));
                assert_eq!(logits(&load(&model), &ids(name)), in_memory, "{what}");
                for (slot, shape) in needed(&config) {
                    let read =
                        Matrix::from_tensor(&model.matrix(slot, &Device::default()).expect("a factor"));
                    assert_eq!(
                        ([read.rows, read.cols], Some(&read)),
                        (shape, factors.get(slot)),
                        "{what}, {slot}"
                    );
                }
                let original = model.matrix(Slot::Layer(0, LayerSlot::Key(Part::Weight)), &Device::default());
                let needed = donor.config().layers[0].qk_norm.is_some();
                assert_eq!(original.is_ok(), store_original_weights || needed, "{what}");
            }
        }
    }
}

#[test]
fn an_exact_joint_conversion_on_disk_is_the_donor() {
    for name in twins() {
        let donor = open(name);
        let scratch = Scratch::empty();
        let model = written(&scratch, &plan(&donor, &exact_joint(&donor)));
        assert_eq!(model.config().compression_ratio(), 1.0);
        let gap = crate::twin::gap(&logits(&load(&model), &ids(name)), &logits(&load(&donor), &ids(name)));
        assert!(gap <= crate::latent::OURSELVES, "{name}: {gap}");
    }
}

#[test]
fn an_exact_conversion_with_a_shared_key_on_disk_is_the_donor() {
    for name in twins() {
        let donor = open(name);
        let scratch = Scratch::empty();
        let factors = exact_shared(&donor);
        let model = written(&scratch, &plan(&donor, &factors));
        assert_eq!(model.config(), Patch::config(&factors), "{name}");
        let gap = crate::twin::gap(&logits(&load(&model), &ids(name)), &logits(&load(&donor), &ids(name)));
        assert!(gap <= crate::latent::OURSELVES, "{name}: {gap}");
    }
}

/// The names under `mla` of a layer, with what is in them.
fn latent_tensors(scratch: &Scratch, layer: usize) -> BTreeMap<String, Raw> {
    let tensors = read_tensors(&place(scratch).join("model.safetensors"));
    let module = format!("model.layers.{layer}.self_attn.mla.");
    tensors.into_iter().filter_map(|(key, raw)| Some((key.strip_prefix(&module)?.to_owned(), raw))).collect()
}

#[test]
fn latent_tensors_have_the_names_of_their_kind() {
    let donor = open("llama");
    for (config, names) in [
        (joint(donor.config()), ["w_down", "w_up"].as_slice()),
        (reading(joint(donor.config()), 2), &["w_cross_k", "w_cross_v", "w_down", "w_up"]),
        (
            cascade(donor.config(), 2, |_| false),
            &["w_cross_k", "w_cross_v", "w_down_k", "w_down_v", "w_up_k", "w_up_v"],
        ),
    ] {
        let factors = random_factors(config.clone(), 1);
        let scratch = Scratch::empty();
        written(&scratch, &plan(&donor, &factors));
        let found = latent_tensors(&scratch, 2);
        assert_eq!(found.keys().collect::<Vec<_>>(), names);
        for (name, slot) in [
            ("w_down", LayerSlot::DownJoint),
            ("w_up", LayerSlot::UpJoint),
            ("w_cross_k", LayerSlot::CrossKey),
            ("w_cross_v", LayerSlot::CrossValue),
            ("w_up_v", LayerSlot::UpValue),
        ] {
            let expected = factors.get(Slot::Layer(2, slot)).map(|m| Raw::f32(&[m.rows, m.cols], &m.data));
            assert_eq!(found.get(name), expected.as_ref(), "{name}");
        }
    }
}

#[test]
fn a_shared_up_projection_is_stored_once() {
    let donor = open(DEEP);
    let factors = random_factors(groups(donor.config(), 2), 5);
    let scratch = Scratch::empty();
    let model = written(&scratch, &plan(&donor, &factors));
    let json = &model.json().get("mla").expect("a section")["layers"];
    for leader in [0, 2, 4] {
        let (first, second) = (latent_tensors(&scratch, leader), latent_tensors(&scratch, leader + 1));
        let ups = |tensors: &BTreeMap<String, Raw>| tensors.keys().filter(|k| k.starts_with("w_up")).count();
        assert_eq!((ups(&first), ups(&second)), (first.len() / 2, 0), "layer {leader}");
        assert!(json[leader].get("up_of").is_none());
        assert_eq!(json[leader + 1]["up_of"], leader);
    }
    let decoder = load(&model);
    let up = |layer: usize| match &decoder.blocks[layer].attention {
        Attention::Latent(attention) => match &attention.projections {
            Projections::Split(split) => split.up_v.weight.id,
            Projections::Joint(joint) => joint.up.weight.id,
        },
        Attention::Grouped(_) => panic!("a latent layer"),
    };
    assert_eq!(up(0), up(1));
    assert_ne!(up(1), up(2));
}

#[test]
fn the_records_of_a_section_are_read_back() {
    let donor = open("llama");
    let factors = random_factors(cascade(donor.config(), 2, |layer| layer == 1), 2);
    let section = MlaSection {
        window: Some(7),
        group: Some(4),
        group_size: Some(2),
        d_rope: Some(8),
        ..MlaSection::from_config("cascade", "fisher", factors.config(), false)
    };
    let scratch = Scratch::empty();
    let model = written(&scratch, &FolderPlan { section: section.clone(), ..plan(&donor, &factors) });
    assert_eq!(model.section(), Some(&section));
    let json = model.json().get("mla").expect("a section");
    assert_eq!((&json["window"], &json["d_rope"]), (&7.into(), &8.into()));
    assert_eq!(json["layers"][2], serde_json::json!({ "d_latent_k": 5, "d_latent_v": 6, "reads_from": 0 }));
    let plain = serde_json::to_value(MlaSection::from_config("separate", "mse", donor.config(), false));
    let fields = plain.expect("a value");
    assert_eq!(
        fields,
        serde_json::json!({
            "version": 1, "method": "separate", "objective": "mse",
            "layers": [null, null, null], "store_original_weights": false,
        })
    );
}

/// Factors that note when they are fetched, and fail at one of them.
struct Watched<'a> {
    factors: &'a WeightMap,
    fetched: RefCell<Vec<Slot>>,
    fails_at: Option<Slot>,
}

impl<'a> Watched<'a> {
    fn new(factors: &'a WeightMap, fails_at: Option<Slot>) -> Self {
        Self { factors, fetched: RefCell::new(Vec::new()), fails_at }
    }
}

impl Patch for Watched<'_> {
    fn config(&self) -> &DecoderConfig {
        Patch::config(self.factors)
    }

    fn shape(&self, slot: Slot) -> Option<[usize; 2]> {
        self.factors.shape(slot)
    }

    fn get(&self, slot: Slot) -> Result<Option<Cow<'_, Matrix>>, SourceError> {
        if self.fails_at == Some(slot) {
            return Err("the disk is gone".into());
        }
        self.fetched.borrow_mut().push(slot);
        Ok(self.factors.get(slot).cloned().map(Cow::Owned))
    }
}

#[test]
fn each_factor_is_fetched_once() {
    let donor = open(DEEP);
    let factors = random_factors(cascade(donor.config(), 3, |_| false), 3);
    let watched = Watched::new(&factors, None);
    let scratch = Scratch::empty();
    let model = written(&scratch, &FolderPlan { factors: &watched, ..plan(&donor, &factors) });
    let mut fetched = watched.fetched.into_inner();
    fetched.sort();
    let mut expected: Vec<Slot> = needed(factors.config()).into_iter().map(|(slot, _)| slot).collect();
    expected.sort();
    assert_eq!(fetched, expected);
    assert_eq!(logits(&load(&model), &ids(DEEP)), logits(&load(&factors.over(&donor)), &ids(DEEP)));
}

#[test]
fn a_factor_that_cannot_be_fetched_is_an_error_and_nothing_is_left_behind() {
    let donor = open("llama");
    let factors = random_factors(joint(donor.config()), 3);
    let watched = Watched::new(&factors, Some(Slot::Layer(1, LayerSlot::UpJoint)));
    let scratch = Scratch::empty();
    let output = Output::prepare(&place(&scratch), Existing::Keep, donor.folder()).expect("a place");
    let result =
        write_folder(&FolderPlan { factors: &watched, ..plan(&donor, &factors) }, output, &|_, _| {});
    refuses!(result, Error::Factor { slot, source }
        if slot == "layer 1 UpJoint" && source.to_string() == "the disk is gone");
    assert_eq!(scratch.names(), [""; 0]);
}

#[test]
#[should_panic(
    expected = "model.layers.1.self_attn.mla.w_cross_k: a latent layer has no factor for layer 1 CrossKey"
)]
fn a_conversion_without_its_cross_terms_is_not_written() {
    let donor = open("llama");
    let plain = random(&donor, 4, 4, 1);
    let mut factors = WeightMap::new(reading(plain.config().clone(), 1));
    for (slot, _) in
        needed(plain.config()).into_iter().chain([(Slot::Layer(0, LayerSlot::CrossKey), [32, 4])])
    {
        let matrix = plain.get(slot).cloned().unwrap_or_else(|| Matrix::new(32, 4, vec![0.0; 128]));
        factors.insert(slot, matrix);
    }
    factors.insert_layer(0, LayerSlot::CrossValue, Matrix::new(32, 4, vec![0.0; 128]));
    let scratch = Scratch::empty();
    drop(super::write(&plan(&donor, &factors), &place(&scratch)));
}
