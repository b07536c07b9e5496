//! A shared key against the formulas in PyTorch, and models in DeepSeek's form against their donors.

use calib::linalg::Mat64;
use calib::shared::{Chosen, Components, Turning};
use calib::{Deepseek, KeyLayout, Method, Objective, Plan, Ranks, Statistics, Width, fit};
use mla_core::decoder::PositionKind;
use mla_core::{CacheDtype, Patch, WeightMap, WeightSource};

use crate::bench::{LENGTH, WINDOWS, device, gap, logits, needs, scratch};
use crate::models::{Sizes, Style, of};

fn golden() -> serde_json::Value {
    serde_json::from_str(include_str!("../../../../goldens/deepseek/golden.json")).expect("a golden")
}

fn numbers(value: &serde_json::Value) -> Vec<f64> {
    value.as_array().expect("numbers").iter().map(|x| x.as_f64().expect("a number")).collect()
}

fn size(value: &serde_json::Value) -> usize {
    value.as_u64().expect("a size") as usize
}

fn square(data: Vec<f64>) -> Mat64 {
    let n = data.len().isqrt();
    Mat64 { rows: n, cols: n, data }
}

fn largest(x: &Mat64) -> f64 {
    x.data.iter().fold(0.0, |largest, x| largest.max(x.abs()))
}

fn difference(a: &Mat64, b: &Mat64) -> f64 {
    let mut gap = a.clone();
    gap.subtract(b);
    largest(&gap)
}

/// The golden's components, and how its keys turn.
fn reference() -> (Components, Turning, Mat64) {
    let golden = golden();
    let turning = Turning {
        d_head: size(&golden["d_head"]),
        d_rotary: size(&golden["d_rotary"]),
        frequencies: numbers(&golden["frequencies"]),
        loudness: golden["loudness"].as_f64().expect("a number"),
        reach: vec![100.0],
        near: vec![3.0],
    };
    let (moment, metric) = (square(numbers(&golden["moment"])), square(numbers(&golden["metric"])));
    (Components::new(&moment, &metric, &turning).expect("finite"), turning, moment)
}

#[test]
fn components_choice_and_split_are_those_of_the_reference() {
    let (golden, (components, turning, moment)) = (golden(), reference());
    let spectrum: Vec<f64> = (0..3).flat_map(|pair| components.spectrum(pair).to_vec()).collect();
    for (ours, theirs) in spectrum.iter().zip(numbers(&golden["spectrum"])) {
        assert!((ours / theirs - 1.0).abs() < 1e-10);
    }
    let chosen = components.costliest(size(&golden["pairs_kept"]), &turning);
    let kept: Vec<[usize; 2]> = chosen.iter().map(|one| [one.pair, one.component]).collect();
    let theirs = golden["kept"].as_array().expect("pairs").iter().map(numbers);
    assert_eq!(kept, theirs.map(|kept| [kept[0] as usize, kept[1] as usize]).collect::<Vec<_>>());
    let key = components.split(&chosen, &turning, moment.rows);
    assert!((key.lost / golden["lost"].as_f64().expect("a number") - 1.0).abs() < 1e-10);
    assert!(difference(&key.up.dot(&key.down), &square(numbers(&golden["through"]))) < 1e-12);
    assert!(difference(&key.rest, &square(numbers(&golden["rest"]))) < 1e-12);
}

/// Rotates pairs of numbers, `(i, i + pairs)` by `angles[i]`, in each of the blocks of `width` rows.
fn rotated(x: &Mat64, width: usize, angles: &[f64]) -> Mat64 {
    let mut out = x.clone();
    for block in (0..x.rows).step_by(width) {
        for (pair, angle) in angles.iter().enumerate() {
            let (a, b) = (block + pair, block + pair + angles.len());
            for column in 0..x.cols {
                out.data[a * x.cols + column] = angle.cos() * x.at(a, column) - angle.sin() * x.at(b, column);
                out.data[b * x.cols + column] = angle.sin() * x.at(a, column) + angle.cos() * x.at(b, column);
            }
        }
    }
    out
}

#[test]
fn what_a_head_reads_of_the_rotated_shared_key_is_its_own_rotated_key() {
    let (components, turning, moment) = reference();
    let d_kv = moment.rows;
    let still = Turning { near: vec![0.0], loudness: 1.0, ..turning.clone() };
    for count in [1, 4, components.count()] {
        let chosen = components.costliest(count, &turning);
        let key = components.split(&chosen, &still, d_kv);
        let through = key.up.dot(&key.down);
        let angle =
            |position: f64| -> Vec<f64> { turning.frequencies.iter().map(|f| f * position).collect() };
        let of_pairs: Vec<f64> = chosen.iter().map(|one| one.frequency * 5.0).collect();
        let ours = key.up.dot(&rotated(&key.down, 2 * chosen.len(), &of_pairs));
        let theirs = rotated(&through, turning.d_head, &angle(5.0));
        // Dimensions that do not turn are none of the shared key's.
        assert!(difference(&ours, &theirs) < 1e-12, "{count}");
        let mut whole = through;
        whole.add(&key.rest);
        assert!(difference(&whole, &Mat64::identity(d_kv)) < 1e-10, "{count}: what is not shared is left");
    }
    let all = components.split(&components.costliest(components.count(), &turning), &turning, d_kv);
    assert_eq!(all.lost, 0.0);
}

#[test]
fn given_frequencies_are_used_by_who_gains_most() {
    let (components, turning, _) = reference();
    let chosen = components.assigned(&turning.frequencies, &turning);
    let first = |pair: usize| Chosen { pair, component: 0, frequency: turning.frequencies[pair] };
    assert_eq!(chosen, [first(0), first(1), first(2)], "the first component of each pair at its own");
    // Slightly off, the same components still gain most, and lose something.
    let off: Vec<f64> = turning.frequencies.iter().map(|f| f * 1.001).collect();
    let near = components.assigned(&off, &turning);
    assert!(near.iter().zip(&chosen).all(|(a, b)| (a.pair, a.component) == (b.pair, b.component)));
    assert!(components.lost(&near, &turning) > components.lost(&chosen, &turning));
    assert!(components.lost(&[], &turning) > components.lost(&near, &turning));
}

struct Known {
    model: WeightMap,
    statistics: Statistics,
    text: Vec<Vec<u32>>,
}

fn known(sizes: &Sizes, methods: &[Deepseek]) -> Known {
    let model = sizes.model();
    let windows = sizes.text(WINDOWS, LENGTH, 1);
    let needs = calib::Needs { shared: methods.to_vec(), ..needs(sizes) };
    let statistics = Statistics::of_text(&model, &windows, &needs, &device(), &scratch(), &mut ());
    Known { statistics: statistics.expect("statistics"), model, text: sizes.text(3, 12, 2) }
}

fn plan(method: Deepseek, ratio: f64, ranks: Ranks) -> Plan {
    Plan {
        method: Method::Deepseek(method),
        objective: Objective::Fisher,
        ranks,
        width: Width::Ratio(ratio),
        cache: CacheDtype::F32,
    }
}

#[test]
fn a_shared_key_of_all_components_is_the_donor() {
    for seed in 0..4 {
        let sizes = of(Style::Rotary, 3, seed);
        let d_kv = WeightSource::config(&sizes.model()).d_kv();
        let method = Deepseek { d_rope: d_kv, layout: KeyLayout::Free };
        let known = known(&sizes, &[method]);
        let fitted =
            fit(&known.model, &known.statistics, plan(method, 1.0, Ranks::Uniform), &device(), &mut ());
        let fitted = fitted.expect("a fit");
        assert_eq!(fitted.factors.config().compression_ratio(), 1.0);
        let ours = logits(&fitted.factors.over(&known.model), &known.text);
        let gap = gap(&ours, &logits(&known.model, &known.text));
        assert!(gap < 1e-4, "{seed}: {gap:e}");
    }
}

#[test]
fn a_series_turns_all_layers_alike() {
    let sizes = of(Style::Rotary, 3, 1);
    let method = Deepseek { d_rope: 4, layout: KeyLayout::Deepseek };
    let known = known(&sizes, &[method]);
    let fitted = fit(&known.model, &known.statistics, plan(method, 1.5, Ranks::Uniform), &device(), &mut ());
    let config = fitted.expect("a fit").factors.config().clone();
    assert!(
        matches!(&config.position, PositionKind::Rope(ropes) if ropes.len() == 2 && ropes[1].d_rotary == 4)
    );
    for layer in 0..config.n_layers() {
        let shared = config.latent(layer).and_then(|latent| latent.shared_key().cloned());
        assert!(shared.is_some_and(|shared| shared.rope == 1 && shared.pairs == [0, 1]));
    }
}

#[test]
fn what_the_ratio_leaves_is_the_latents() {
    let sizes = of(Style::Rotary, 3, 2);
    let methods = [2, 4].map(|d_rope| Deepseek { d_rope, layout: KeyLayout::Free });
    let known = known(&sizes, &methods);
    for method in methods {
        for ranks in [Ranks::Uniform, Ranks::Global] {
            for ratio in [1.0, 1.5, 2.0] {
                let fitted =
                    fit(&known.model, &known.statistics, plan(method, ratio, ranks), &device(), &mut ());
                let fitted = fitted.expect("a fit");
                let config = fitted.factors.config();
                let d_kv = config.d_kv();
                let whole = (6.0 * d_kv as f64 / ratio) as usize;
                assert!((whole - 3..=whole).contains(&config.cached_numbers_total()), "{method:?} {ratio}");
                let d_ropes = (0..3).filter_map(|layer| config.latent(layer)).map(|latent| latent.d_rope());
                assert_eq!(d_ropes.sum::<usize>(), 3 * method.d_rope);
                assert!(
                    fitted.discarded() >= 0.0 && fitted.layers.iter().all(|layer| layer.rotation.is_some())
                );
            }
        }
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let config = WeightSource::config(&of(Style::Rotary, 2, 1).model()).clone();
    let learned = WeightSource::config(&of(Style::Learned, 2, 1).model()).clone();
    let method = |d_rope| Deepseek { d_rope, layout: KeyLayout::Free };
    let check = |d_rope, ratio| plan(method(d_rope), ratio, Ranks::Uniform).check(&config);
    let d_kv = config.d_kv();
    assert!(check(4, 1.0).is_ok());
    for d_rope in [0, 3, d_kv + 2] {
        let error = check(d_rope, 1.0).expect_err("no such key").to_string();
        assert!(error.contains(&format!("{d_rope} numbers")), "{error}");
    }
    assert!(check(d_kv, 2.0).expect_err("nothing is left").to_string().contains("that the ratio leaves"));
    let error = plan(method(2), 1.5, Ranks::Uniform).check(&learned).expect_err("nothing turns");
    assert!(error.to_string().contains("no rotary embedding"));
    let mse = Plan { objective: Objective::Mse, ..plan(method(2), 1.5, Ranks::Uniform) };
    assert!(mse.check(&config).expect_err("no gradients").to_string().contains("fisher"));
}
