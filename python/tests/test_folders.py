"""Converted folders in transformers, with nothing of shrink's but the code that they carry."""

from __future__ import annotations

import copy
import importlib
import json
import pickle
import sys
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from conftest import CACHE, Case

#: Between logits of transformers and of shrink, in f32.
BOUND = 2e-4
#: In nats a token, where latents are quantised and some lie between two codes, so that rounding decides.
FLIPPED = 1e-2
#: Passes by which 24 columns are fed through a cache.
PASSES = (10, 1, 1, 5, 1, 6)


def module_of(model: Any) -> Any:
    """The code that a folder carries."""
    return sys.modules[type(model).__module__]


def cached(model: Any, ids: Tensor, passes: tuple[int, ...] = PASSES, cache: Any = None, **more: Any) -> tuple[Tensor, Any]:
    """Logits of all columns, fed in passes; and the cache."""
    logits, at = [], 0
    for width in passes:
        given = {} if cache is None else {CACHE: cache}
        with torch.no_grad():
            out = model(ids[:, at : at + width], use_cache=True, **given, **more)
        cache = getattr(out, CACHE)
        logits.append(out.logits)
        at += width
    return torch.cat(logits, 1), cache


def gap(a: Tensor, b: Tensor) -> float:
    assert a.shape == b.shape
    return (a - b).abs().max().item()


def assert_close(case: Case, found: Tensor, expected: Tensor) -> None:
    """Asserts that logits `[.., vocab]` are shrink's; of quantised latents, nearly: some code hangs on rounding."""
    if case.quantised:
        found, expected = found.log_softmax(-1), expected.log_softmax(-1)
        divergence = (expected.exp() * (expected - found)).sum(-1)
        assert divergence.mean() < FLIPPED, divergence
    else:
        apart = (found - expected).abs().amax(-1)
        assert apart.max() < BOUND, apart


@pytest.fixture
def tiny_tiles(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Has contexts of a few tokens be walked in tiles."""

    def set_tiles(model: Any, tile: int = 4) -> None:
        monkeypatch.setattr(module_of(model), "TILE", tile)

    return set_tiles


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_logits_are_shrinks(case: Case, attention: str) -> None:
    expected = case.expected
    try:
        model = case.open(attn_implementation=attention)
    except ValueError as error:
        assert "does not support an attention implementation" in str(error) and case.path.name.startswith(("gemma2", "gpt-oss"))
        pytest.skip("transformers has no sdpa with bounds or sinks")
    ids, logits = torch.tensor(expected["ids"]), torch.tensor(expected["logits"])
    with torch.no_grad():
        assert_close(case, model(ids).logits, logits)


def test_every_tensor_is_loaded(case: Case) -> None:
    found, report = AutoModelForCausalLM.from_pretrained(case.path, trust_remote_code=True, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"], report
    trained = {name.rpartition(".")[2] for name, parameter in found.named_parameters() if parameter.requires_grad}
    assert trained and all(name.startswith(("w_down", "w_up", "w_cross")) for name in trained), trained


def test_a_cache_gives_what_one_pass_gives_and_holds_what_was_promised(case: Case, tiny_tiles: Any) -> None:
    expected = case.expected
    model, ids, logits = case.open(), torch.tensor(expected["ids"]), torch.tensor(expected["logits"])
    for tiles in (False, True):
        if tiles:
            tiny_tiles(model)
        found, cache = cached(model, ids)
        if not expected["follows_length"]:  # else an earlier pass turned by other frequencies
            assert_close(case, found, logits)
    for layer, promised in zip(cache.layers, expected["layers"], strict=True):
        # transformers keeps one token fewer than a window: the next is always new.
        window = promised["window"]
        kept = ids.shape[1] if window is None else min(window - 1, ids.shape[1])
        held = sum(x.numel() * x.element_size() for x in (layer.keys, layer.values))
        if promised["latent"]:
            assert held == ids.shape[0] * kept * promised["bytes"]
            assert layer.values.numel() == 0


def test_padding_on_the_left_changes_nothing(case: Case) -> None:
    padded = case.expected["padded"]
    if case.expected["follows_length"]:
        pytest.skip("its frequencies follow the length of the longest")
    ids, mask, logits = (torch.tensor(padded[name]) for name in ("ids", "mask", "logits"))
    model = case.open()
    with torch.no_grad():
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        found = model(ids, attention_mask=mask, position_ids=positions).logits
    assert_close(case, found[mask.bool()], logits[mask.bool()])


def test_generate_in_a_batch_and_by_beams(case: Case, tiny_tiles: Any) -> None:
    if case.expected["follows_length"]:
        pytest.skip("what is cached does not follow the length")
    padded = case.expected["padded"]
    ids, mask = torch.tensor(padded["ids"]), torch.tensor(padded["mask"])
    model = case.open()
    how = {"max_new_tokens": 12, "min_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    alone = model.generate(ids[:1, -int(mask[0].sum()) :], **how)[:, -12:]
    assert torch.equal(model.generate(ids, attention_mask=mask, **how)[:1, -12:], alone)
    tiny_tiles(model, 8)
    assert torch.equal(model.generate(ids, attention_mask=mask, **how)[:1, -12:], alone)
    beams = model.generate(ids, attention_mask=mask, num_beams=3, **how)
    assert torch.equal(beams, model.generate(ids, attention_mask=mask, num_beams=3, use_cache=False, **how))


def test_saving_and_opening_again_changes_no_bit(case: Case, tmp_path: Any) -> None:
    model, ids = case.open(), torch.tensor(case.expected["ids"])
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["model_type"] == "shrink" and config["mla"]["layers"]
    assert (tmp_path / "modeling_shrink.py").exists() and (tmp_path / "configuration_shrink.py").exists()
    with torch.no_grad():
        assert torch.equal(Case(tmp_path).open()(ids).logits, model(ids).logits)


def test_gradients_reach_what_trains_and_nothing_else(case: Case) -> None:
    model, ids = case.open(), torch.tensor(case.expected["ids"])
    model.train()
    model(ids, labels=ids).loss.backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
        if parameter.grad is not None:
            assert parameter.grad.isfinite().all() and parameter.grad.abs().max() > 0, name


@pytest.mark.only("llama.", "qwen3.", "gpt2.", "demo.")
def test_bf16_is_close(case: Case) -> None:
    expected = case.expected
    model, ids = case.open(torch.bfloat16), torch.tensor(expected["ids"])
    with torch.no_grad():
        found = model(ids).logits.float().log_softmax(-1)
    right = torch.tensor(expected["logits"]).log_softmax(-1)
    assert (right.exp() * (right - found)).sum(-1).mean() < (0.1 if case.quantised else 0.02)
    assert torch.isfinite(cached(model, ids)[0]).all()


@pytest.mark.only("demo.", "smollm2")
def test_greedy_tokens_are_shrinks(case: Case) -> None:
    if case.quantised and not case.path.name.startswith("demo."):
        pytest.skip("some code hangs on rounding")
    model = case.open()
    for prompt, tokens in zip(case.expected["prompts"], case.expected["greedy"], strict=True):
        found = model.generate(torch.tensor([prompt]), max_new_tokens=64, do_sample=False, pad_token_id=0)
        # transformers ends where the model ends.
        common = min(found.shape[1] - len(prompt), len(tokens))
        assert found[0, len(prompt) :].tolist()[:common] == tokens[:common] and common > 8


@pytest.mark.only("demo.")
def test_drafts_that_are_refused_leave_the_cache(case: Case) -> None:
    """Prompt lookup, and an assistant, crop what was refused."""
    if "gemma" in case.path.name:
        pytest.skip("sliding")
    model = case.open()
    prompt = torch.tensor([case.expected["prompts"][0]])
    how = {"max_new_tokens": 24, "do_sample": False, "pad_token_id": 0}
    alone = model.generate(prompt, **how)
    assert torch.equal(model.generate(prompt, prompt_lookup_num_tokens=3, **how), alone)
    assert torch.equal(model.generate(prompt, assistant_model=copy.deepcopy(model), **how), alone)


@pytest.mark.only("demo.")
def test_pipeline_and_checkpointed_gradients(case: Case) -> None:
    from transformers import AutoTokenizer, pipeline

    model, tokenizer = case.open(), AutoTokenizer.from_pretrained(case.path)
    generator = pipeline("text-generation", model=model, tokenizer=tokenizer)
    assert generator("The ship", max_new_tokens=8, do_sample=False)[0]["generated_text"].startswith("The ship")
    ids = torch.tensor(case.expected["ids"])
    model.train()
    model(ids, labels=ids).loss.backward()
    plain = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model(ids, labels=ids).loss.backward()
    for name, parameter in model.named_parameters():
        if name in plain:
            assert gap(parameter.grad, plain[name]) < 1e-5, name


@pytest.mark.only("demo.joint", "gemma3.joint")
def test_a_configuration_goes_to_other_processes(case: Case) -> None:
    config = case.open().config
    assert pickle.loads(pickle.dumps(config)).to_dict() == config.to_dict()
    assert copy.deepcopy(config).to_dict() == config.to_dict()


@pytest.mark.only("demo.joint")
def test_a_folder_of_another_kind_is_refused_with_a_reason(case: Case, tmp_path: Any) -> None:
    opened = type(case.open().config)
    config = importlib.import_module(opened.__module__).ShrinkConfig
    fields = json.loads((case.path / "config.json").read_text())
    for change, reason in (
        ({"mla": None}, "no `mla` section"),
        ({"mla": {**fields["mla"], "version": 9}}, "version 9"),
        ({"mla": {**fields["mla"], "donor": {"model_type": "none-such"}}}, "'none-such'"),
    ):
        with pytest.raises(ValueError, match=reason):
            config.from_dict({**fields, **change})
