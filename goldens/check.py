"""Check the twins as written: the goldens come out again, the keys are the hub's, and a mistake would show.

python goldens/check.py [FAMILY ...]
"""

import json
import sys
from pathlib import Path

sys.dont_write_bytecode = True
sys.path.insert(0, str(Path(__file__).resolve().parent))
import torch  # noqa: E402
import twin  # noqa: E402
from safetensors import safe_open  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer  # noqa: E402

ROOT = Path(__file__).resolve().parent
L = "model.layers.0."
KEYS = {
    "gpt2": ["wte.weight", "wpe.weight", "h.0.ln_1.bias", "h.0.attn.c_attn.weight", "h.0.attn.bias", "ln_f.weight"],
    "llama": ["model.embed_tokens.weight", L + "self_attn.q_proj.weight", "model.norm.weight", "lm_head.weight"],
    "llama-bias": [L + "self_attn.o_proj.bias", L + "mlp.down_proj.bias"],
    "mixtral": [L + "block_sparse_moe.gate.weight"]
    + [L + f"block_sparse_moe.experts.{e}.{w}.weight" for e in range(4) for w in ("w1", "w2", "w3")],
    "qwen2": [L + "self_attn.k_proj.bias"],
    "qwen3": [L + "self_attn.q_norm.weight", L + "self_attn.k_norm.weight"],
    "qwen3-moe": [L + "mlp.gate.weight", "model.layers.1.mlp.gate_proj.weight"]
    + [L + f"mlp.experts.{e}.{w}.weight" for e in range(4) for w in ("gate_proj", "up_proj", "down_proj")],
    "gemma2": [L + f"{at}_layernorm.weight" for at in ("input", "post_attention")]
    + [L + f"{at}_feedforward_layernorm.weight" for at in ("pre", "post")],
    "gemma3-nested": ["language_model." + L + "self_attn.k_norm.weight", "language_model.model.embed_tokens.weight"],
    "phi3": [L + "self_attn.qkv_proj.weight", L + "mlp.gate_up_proj.weight"],
    "olmo2": [L + "self_attn.k_norm.weight"]
    + [L + f"post_{at}_layernorm.weight" for at in ("attention", "feedforward")],
    "gpt-neox": ["gpt_neox.embed_in.weight", "gpt_neox.layers.0.attention.query_key_value.bias", "embed_out.weight"]
    + ["gpt_neox.layers.0.attention." + b for b in ("bias", "masked_bias", "rotary_emb.inv_freq")],
    "gpt-oss": [L + "self_attn.sinks", L + "mlp.router.bias"]
    + [L + f"mlp.experts.{w}" for w in ("gate_up_proj", "gate_up_proj_bias", "down_proj", "down_proj_bias")],
}


def changed(folder, edit):
    """The prefill's largest logit change when config.json's fields are replaced, or a function is let at the model."""
    g = load_file(folder / "golden.safetensors")
    if callable(edit):
        model = twin.load(folder)
        with torch.no_grad():
            edit(model)
    else:
        fields = json.loads((folder / "config.json").read_text())
        (fields.get("text_config") or fields).update(edit)
        config = AutoConfig.for_model(fields.pop("model_type"), **fields)
        model = AutoModelForCausalLM.from_pretrained(
            folder, config=config, dtype=torch.float32, attn_implementation="eager"
        ).eval()
    with torch.no_grad():
        logits = model(g["prefill.ids"], use_cache=False).logits
    return (logits - g["prefill.logits"]).abs().max().item()


def no_bias(model):
    for name, p in model.named_parameters():
        if name.endswith((".bias", "_proj_bias")):
            p.zero_()


def no_norm(model):
    for name, p in model.named_parameters():
        if p.dim() == 1 and name.endswith(".weight"):
            p.fill_(0.0 if twin.one_plus(model) else 1.0)


def no_qk_norm(model):
    for layer in twin.text(model).layers:
        layer.self_attn.q_norm = layer.self_attn.k_norm = torch.nn.Identity()


def q_norm_is_k_norm(model):
    for layer in twin.text(model).layers:
        layer.self_attn.q_norm.weight.copy_(layer.self_attn.k_norm.weight)


def gain_without_one(model):
    for name, p in model.named_parameters():
        if "norm" in name and "vision" not in name:
            p.sub_(1.0)


def no_embedding_scale(model):
    twin.text(model).embed_tokens.embed_scale.fill_(1.0)


def no_sinks(model):
    for layer in twin.text(model).layers:
        layer.self_attn.sinks.fill_(-1e9)


def rope_edits(fields):
    """Another base, no scaling, and each field of a scaling that is there changed on its own."""
    if "rope_parameters" not in fields:
        base, scaling = ("rotary_emb_base" if "rotary_emb_base" in fields else "rope_theta"), fields.get("rope_scaling")
        theta = 10000.0 if fields.get(base) != 10000.0 else 500.0
        out = {f"{base} {theta}": {base: theta}}
        if fields["model_type"] == "gemma3_text":
            if base not in fields:  # the class's base is so large that 10,000 in its place is hardly felt
                out = {"rope_theta 10": {"rope_theta": 10.0}}
            out["rope_local_base_freq 100"] = {"rope_local_base_freq": 100.0}
        if scaling:
            if fields["model_type"] == "gpt_oss":  # without one it takes its class's yarn
                out["no rope_scaling"] = {"rope_scaling": {"rope_type": "default"}}
            else:
                out["no rope_scaling"] = {"rope_scaling": None}
            for key, value in scaling_edits(scaling):
                out[f"{key} {value}"] = {"rope_scaling": scaling | {key: value}}
        return out
    rope = fields["rope_parameters"]
    if "rope_type" in rope:
        out = {"rope_theta 10000": {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}}
        if rope.get("rope_theta") == 10000.0:
            out = {"rope_theta 500": {"rope_parameters": rope | {"rope_theta": 500.0}}}
        if rope["rope_type"] != "default":
            plain = {"rope_type": "default", "rope_theta": rope["rope_theta"]}
            out["no scaling"] = {"rope_parameters": plain}
            for key, value in scaling_edits(rope):
                out[f"{key} {value}"] = {"rope_parameters": rope | {key: value}}
        return out
    out = {"the other layers' rope": {"rope_parameters": dict(zip(rope, reversed(rope.values())))}}
    for kind in rope:
        out[f"{kind} rope_theta 500"] = {"rope_parameters": rope | {kind: rope[kind] | {"rope_theta": 500.0}}}
        for key, value in scaling_edits(rope[kind]):
            out[f"{kind} {key} {value}"] = {"rope_parameters": rope | {kind: rope[kind] | {key: value}}}
    return out


def scaling_edits(scaling):
    """A scaling's fields that must be felt. An attention_factor is what mscale would be taken for."""
    felt = {
        "attention_factor": 1.0,
        "beta_fast": 32,
        "beta_slow": 1,
        "truncate": True,
        "original_max_position_embeddings": 512,
        "long_factor": scaling.get("short_factor"),
        "mscale": None,
        "mscale_all_dim": 1.1,
    }
    if scaling.get("rope_type", scaling.get("type")) not in ("yarn", "longrope"):
        return
    for key, value in felt.items():
        dead = key.startswith("mscale") and "attention_factor" in scaling
        if key in scaling and scaling[key] != value and not dead:
            yield key, value


def window_edits(fields):
    layers, window = fields.get("num_hidden_layers"), fields.get("sliding_window")
    out = {}
    if window and fields.get("use_sliding_window", True):
        out["window off"] = {"sliding_window": None, "layer_types": None}
        out["window + 1"] = {"sliding_window": window + 1}
    if window and fields.get("use_sliding_window") is False:
        out["window on"] = {"use_sliding_window": True, "max_window_layers": 0, "layer_types": None}
    if fields.get("use_sliding_window") and fields["model_type"] != "qwen3_moe":
        out["window from layer 0"] = {"max_window_layers": 0, "layer_types": None}
    if fields["model_type"] in ("gemma2", "gemma3_text", "olmo3", "ministral", "gpt_oss"):
        out["window off"] = {"layer_types": ["full_attention"] * layers}
        out["window everywhere"] = {"layer_types": ["sliding_attention"] * layers}
        types = fields.get("layer_types", [])
        if types != types[::-1]:
            out["layer types turned round"] = {"layer_types": types[::-1]}
    return out


def edits(folder):
    """What a reader of the family's layout could get wrong: each must move a logit."""
    whole = json.loads((folder / "config.json").read_text())
    fields = whole.get("text_config") or whole
    out = {"no norm": no_norm}
    with safe_open(folder / "model.safetensors", "pt") as f:
        keys = list(f.keys())
    if any(k.endswith(("_proj.bias", "c_attn.bias", "query_key_value.bias")) for k in keys if "vision" not in k):
        out["no bias"] = no_bias
    if fields["model_type"] == "gpt2":
        return out
    out |= rope_edits(fields) | window_edits(fields)
    if any("k_norm" in k for k in keys):
        out["no qk-norm"] = no_qk_norm
        if not fields["model_type"].startswith("olmo"):
            out["q's norm is k's"] = q_norm_is_k_norm
    if any("sinks" in k for k in keys):
        out["no sinks"] = no_sinks
    if fields["model_type"].startswith("gemma"):
        out |= {
            "gain w for 1 + w": gain_without_one,
            "no embedding scale": no_embedding_scale,
            "query_pre_attn_scalar 16": {"query_pre_attn_scalar": 16},
            "silu for gelu": {"hidden_activation": "silu"},
        }
    if fields.get("num_local_experts") or fields.get("num_experts"):
        out["1 expert a token"] = {"num_experts_per_tok": 1}
    for key, value in {
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
        "embedding_multiplier": 1.0,
        "attention_multiplier": 8**-0.5,
        "residual_multiplier": 1.0,
        "logits_scaling": 1.0,
        "norm_topk_prob": not fields.get("norm_topk_prob"),
        "swiglu_limit": 7.0,
        "partial_rotary_factor": 1.0,
        "rotary_pct": 1.0,
        "use_parallel_residual": not fields.get("use_parallel_residual"),
        "no_rope_layers": [1] * fields.get("num_hidden_layers", 0),
    }.items():
        if fields.get(key) is not None and not (key == "partial_rotary_factor" and fields["rope_scaling"]):
            out[f"{key} {value}"] = {key: value}
    return out


@torch.no_grad()
def check(name):
    folder = ROOT / name
    meta = json.loads((folder / "golden.json").read_text())
    stored = load_file(folder / "golden.safetensors")
    assert set(stored) == set(meta["tensors"])
    again = twin.golden(twin.load(folder), meta["seed"]["weights"])
    far = max((stored[k].float() - again[k].float()).abs().max().item() for k in stored)
    assert far < 1e-4, far
    with safe_open(folder / "model.safetensors", "pt") as f:
        keys, kinds = set(f.keys()), {f.get_slice(k).get_dtype() for k in f.keys()}
        assert f.metadata() == {"format": "pt"} and kinds <= {"F32"} | ({"U8"} if name == "gpt-neox" else set())
    assert not set(KEYS.get(name, [])) - keys, set(KEYS[name]) - keys
    tied = json.loads((folder / "config.json").read_text()).get("tie_word_embeddings", True)
    assert any(k in keys for k in ("lm_head.weight", "embed_out.weight")) == (not tied)
    tok = AutoTokenizer.from_pretrained(folder)
    text = "the sea in the air<|endoftext|> Ünï\n"
    assert tok.decode(tok.encode(text)) == text and max(tok.encode(text)) == twin.EOS_ID
    print(f"{name}: again within {far:.1e}")
    if "decode.ids" in stored:
        full = torch.cat([stored["prefill.ids"], stored["decode.ids"]], 1)
        whole = twin.load(folder)(full, use_cache=False).logits[:, twin.PREFILL - 1 : -1]
        top = stored["decode.logits"][0].topk(2).values
        print(
            f"  cached against one pass: {(whole - stored['decode.logits']).abs().max():.1e}; "
            f"smallest greedy margin {(top[:, 0] - top[:, 1]).min():.3f}; ids {stored['decode.ids'][0].tolist()}"
        )
        for row, n in enumerate(twin.PADDED):
            alone = twin.load(folder)(stored["padded.ids"][row : row + 1, -n:], use_cache=False).logits[0]
            far = (alone - stored["padded.logits"][row, -n:]).abs().max()
            assert far < 1e-4, (row, far)
    if name == "llama-dynamic":
        fields = json.loads((folder / "config.json").read_text())
        grown = 2.0 * twin.PREFILL / fields["max_position_embeddings"] - 1.0
        theta = fields["rope_theta"] * grown ** (fields["head_dim"] / (fields["head_dim"] - 2))
        far = changed(folder, {"rope_theta": theta, "rope_scaling": None})
        print(f"  the base golden.json gives, {theta:.1f}, moves a logit by {far:.1e}")
        assert far < 1e-4
    model = twin.load(folder)
    if getattr(model.config, "num_local_experts", None):
        routers = model(stored["prefill.ids"], use_cache=False, output_router_logits=True).router_logits
        gaps = [(r.topk(3).values[:, 1] - r.topk(3).values[:, 2]).min().item() for r in routers]
        used = [r.topk(2).indices.unique().tolist() for r in routers]
        print(f"  smallest gap between the second and third router logit {gaps}, experts used {used}")
        assert min(gaps) > 1e-3, "a router's choice is too close: take another seed"
    for what, edit in edits(folder).items():
        far = changed(folder, edit)
        print(f"  {what}: moves a logit by {far:.2f}")
        assert far > 0.1, what


twins = [p.parent.name for p in ROOT.glob("*/golden.safetensors") if (p.parent / "config.json").exists()]
for family in sys.argv[1:] or sorted(twins):
    check(family)
