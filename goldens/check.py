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
}


def changed(folder, edit):
    """The prefill's largest logit change when config.json is edited (or, given a model, its weights)."""
    g = load_file(folder / "golden.safetensors")
    fields = json.loads((folder / "config.json").read_text())
    config = AutoConfig.from_pretrained(folder)
    if edit in ("no bias", "no norm"):
        model = twin.load(folder)
        with torch.no_grad():
            for name, p in model.named_parameters():
                if edit == "no bias" and name.endswith(".bias"):
                    p.zero_()
                if edit == "no norm" and p.dim() == 1 and name.endswith(".weight"):
                    p.fill_(1.0)
    else:
        fields.update(edit)
        fields.pop("model_type")
        config = type(config)(**fields)
        model = AutoModelForCausalLM.from_pretrained(
            folder, config=config, dtype=torch.float32, attn_implementation="eager"
        ).eval()
    with torch.no_grad():
        logits = model(g["prefill.ids"], use_cache=False).logits
    return (logits - g["prefill.logits"]).abs().max().item()


def edits(folder):
    fields = json.loads((folder / "config.json").read_text())
    out = {"no norm": "no norm"}
    with safe_open(folder / "model.safetensors", "pt") as f:
        if any(k.endswith("_proj.bias") or k.endswith("c_attn.bias") for k in f.keys()):
            out["no bias"] = "no bias"
    if fields["model_type"] == "gpt2":
        return out
    if "rope_parameters" in fields:
        out["rope_theta 10000"] = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}
    else:
        theta = 10000.0 if fields["rope_theta"] != 10000.0 else 5000.0
        out[f"rope_theta {theta}"] = {"rope_theta": theta}
        if fields.get("rope_scaling"):
            out["no rope_scaling"] = {"rope_scaling": None}
    if fields.get("sliding_window") and fields.get("use_sliding_window", True):
        out["window off"] = {"sliding_window": None, "layer_types": None}
        out["window + 1"] = {"sliding_window": fields["sliding_window"] + 1}
    if fields.get("use_sliding_window") is False:
        out["window on"] = {"use_sliding_window": True, "max_window_layers": 0, "layer_types": None}
    if fields.get("use_sliding_window"):
        out["window from layer 0"] = {"max_window_layers": 0, "layer_types": None}
    if "num_local_experts" in fields:
        out["1 expert a token"] = {"num_experts_per_tok": 1}
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
        assert f.metadata() == {"format": "pt"} and kinds == {"F32"}
    assert not set(KEYS.get(name, [])) - keys, set(KEYS[name]) - keys
    tied = json.loads((folder / "config.json").read_text()).get("tie_word_embeddings", True)
    assert ("lm_head.weight" in keys) == (not tied)
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
    if name == "mixtral":
        model = twin.load(folder)
        routers = model(stored["prefill.ids"], use_cache=False, output_router_logits=True).router_logits
        gaps = [(r.topk(3).values[:, 1] - r.topk(3).values[:, 2]).min().item() for r in routers]
        used = [r.topk(2).indices.unique().tolist() for r in routers]
        print(f"  smallest gap between the second and third router logit {gaps}, experts used {used}")
    for what, edit in edits(folder).items():
        far = changed(folder, edit)
        print(f"  {what}: moves a logit by {far:.2f}")
        assert far > 0.1, what


twins = [p.parent.name for p in ROOT.glob("*/golden.safetensors") if (p.parent / "config.json").exists()]
for family in sys.argv[1:] or sorted(twins):
    check(family)
