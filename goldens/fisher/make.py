"""E[g gᵀ] at the outputs of k_proj and v_proj of some twins, by one backward pass of transformers.

g is the gradient of the cross-entropy, summed over all positions but the last of each window, against fixed labels
(not the next tokens: any labels do); the mean is over all tokens, those without a prediction counted.
"""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.dont_write_bytecode = True
sys.path.insert(0, str(HERE.parent))
import torch  # noqa: E402
import twin  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

TWINS = ("gpt2", "llama", "mixtral", "qwen2", "qwen2-window")
WINDOWS, LENGTH, SEED = 6, 24, 91


def projections(model):
    """For each layer, what follows its k_proj and v_proj: a module, and the columns of its output that are K and V."""
    if model.config.model_type == "gpt2":
        d = model.config.n_embd
        return [(b.attn.c_attn, b.attn.c_attn, slice(d, 2 * d), slice(2 * d, 3 * d)) for b in model.transformer.h]
    everything = slice(None)
    return [(b.self_attn.k_proj, b.self_attn.v_proj, everything, everything) for b in model.model.layers]


def fisher(model, ids, labels):
    outputs, hooks = {}, []

    def keep(module, _args, out):
        out.retain_grad()
        outputs[module] = out

    layers = projections(model)
    for module in {m for k, v, _, _ in layers for m in (k, v)}:
        hooks.append(module.register_forward_hook(keep))
    logits = model(ids, use_cache=False).logits[:, :-1]
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum").backward()
    for hook in hooks:
        hook.remove()
    found = {}
    for i, (k, v, columns_k, columns_v) in enumerate(layers):
        for name, module, columns in (("key", k, columns_k), ("value", v, columns_v)):
            g = outputs[module].grad[..., columns].flatten(0, 1).double()
            found[f"{name}.{i}"] = (g.T @ g / g.shape[0]).float()
    return found


tensors = {}
for name in TWINS:
    model = twin.load(HERE.parent / name)
    gen = torch.Generator().manual_seed(SEED)
    ids = twin.ids(gen, WINDOWS, LENGTH)
    labels = twin.ids(gen, WINDOWS, LENGTH - 1)
    tensors |= {"ids": ids, "labels": labels}
    tensors |= {f"{name}.{key}": value.contiguous() for key, value in fisher(model, ids, labels).items()}
save_file(tensors, HERE / "golden.safetensors")
twin.write_json(
    HERE / "golden.json",
    {
        "made_by": twin.versions(),
        "seed": SEED,
        "compute": "float32, attn_implementation=eager, eval mode; the products of gradients in float64",
        "twins": list(TWINS),
        "tensors": {
            "ids": "windows of token ids, the same for every twin",
            "labels": "what each position but a window's last is scored against",
            "TWIN.key.N": "E[g gᵀ] at the output of layer N's k_proj (of gpt2, the k columns of c_attn), before RoPE",
            "TWIN.value.N": "the same of v_proj",
        },
    },
)
for p in sorted(HERE.iterdir()):
    print(f"{p.stat().st_size:>7} {p.name}")
