"""Losses and gradients of latent attention, by PyTorch's autograd.

k_proj and v_proj of a transformers model are replaced by modules that go through latents (random ones: any will do), and each
loss is taken back to every latent matrix. What shrink computes a block at a time must come out of this whole graph too.

The losses, each with the mean over all tokens that have a next one:
- lm:             cross-entropy of the next token
- kl:             KL(teacher ‖ student)
- distillation:   α T² KL(teacher ‖ student at temperature T) + (1 − α) lm
- reconstruction: (1 − α) lm + α · mean over layers of ½ (MSE_K + MSE_V), of K and V before RoPE, against what the teacher's
                  W_k and W_v make of the student's own hidden states

The teacher is the twin itself.

A run is ten steps of distillation on the same batch: AdamW for W_down and the cross terms, geoopt's Riemannian Adam for W_up, a
gradient longer than 1 shortened.
"""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.dont_write_bytecode = True
sys.path.insert(0, str(HERE.parent))
import geoopt  # noqa: E402
import torch  # noqa: E402
import twin  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

TWIN = "qwen2"
WINDOWS, LENGTH, SEED = 3, 20, 57
TEMPERATURE, DISTILLATION_ALPHA, RECONSTRUCTION_ALPHA = 2.0, 0.9, 0.3
RUNS = ("separate", "cascade", "xkv")
STEPS, EUCLIDEAN_LR, RIEMANNIAN_LR, WEIGHT_DECAY = 10, 2e-3, 2e-2, 0.01
LOSSES = ("lm", "kl", "distillation", "reconstruction")
# A layer: its kind and widths, the layer whose W_up it uses, the first layer it reads.
METHODS = {
    "separate": [("split", 7, 5, None, None), ("split", 4, 6, None, None), ("split", 8, 4, None, None)],
    "xkv": [("split", 6, 5, None, None), ("split", 6, 5, 0, None), ("split", 5, 5, None, None)],
    "joint": [("joint", 9, 0, None, None), ("joint", 8, 0, None, None), ("joint", 11, 0, None, None)],
    "decoupled_rope": [("kept", 7, 5, None, None), ("kept", 5, 6, None, None), ("kept", 4, 6, None, None)],
    "cascade": [("joint", 9, 0, None, 0), ("joint", 7, 0, None, 0), ("joint", 8, 0, None, 0)],
    "cascade apart": [("split", 6, 5, None, 0), ("split", 4, 7, None, 0), ("split", 5, 5, None, 1)],
    "one layer kept": [("joint", 8, 0, None, None), None, ("joint", 7, 0, None, 0)],
}


def factors(method, layers, d_model, d_kv, gen):
    """The latent matrices of a method, by `layer.slot`."""

    def normal(rows, cols):
        return torch.randn(rows, cols, generator=gen) / cols**0.5

    def orthonormal(rows, cols):
        return torch.linalg.qr(torch.randn(rows, cols, generator=gen))[0]

    def keeping(cols):
        # Two dimensions as they are, the others in an orthonormal basis.
        up = torch.zeros(d_kv, cols)
        up[:2, :2] = torch.eye(2)
        up[2:, 2:] = orthonormal(d_kv - 2, cols - 2)
        return up

    found, widths = {}, {}
    for i, layer in enumerate(layers):
        if layer is None:
            continue
        kind, first, second, up_of, reads_from = layer
        up = keeping if kind == "kept" else lambda cols: orthonormal(d_kv, cols)
        if kind == "joint":
            found[f"{i}.DownJoint"] = normal(first, d_model)
            found[f"{i}.UpJoint"] = orthonormal(2 * d_kv, first)
        else:
            found[f"{i}.DownKey"], found[f"{i}.DownValue"] = normal(first, d_model), normal(second, d_model)
            if up_of is None:
                found[f"{i}.UpKey"], found[f"{i}.UpValue"] = up(first), up(second)
        if reads_from is not None:
            earlier = sum(widths[j] for j in range(reads_from, i) if j in widths)
            for slot, own in (("CrossKey", second), ("CrossValue", first)):
                columns = earlier + (0 if kind == "joint" else own)
                if columns:
                    found[f"{i}.{slot}"] = 0.3 * normal(d_kv, columns)
        widths[i] = first + second
    return {name: torch.nn.Parameter(value) for name, value in found.items()}


class Latents:
    """One layer's latents, from which K and V are rebuilt; `seen` holds those of the layers before it."""

    def __init__(self, i, layer, params, seen, original):
        self.i, self.layer, self.params, self.seen, self.original = i, layer, params, seen, original
        self.errors = []

    def own(self, h):
        kind = self.layer[0]
        names = ["DownJoint"] if kind == "joint" else ["DownKey", "DownValue"]
        self.seen[self.i] = [h @ self.params[f"{self.i}.{name}"].T for name in names]
        return self.seen[self.i]

    def rebuild(self, h, which):
        kind, _, _, up_of, reads_from = self.layer
        own = self.own(h)
        d_kv = self.original[which].out_features
        if kind == "joint":
            out = (own[0] @ self.params[f"{self.i}.UpJoint"].T)[..., which * d_kv : (which + 1) * d_kv]
        else:
            name = ("UpKey", "UpValue")[which]
            out = own[which] @ self.params[f"{self.i if up_of is None else up_of}.{name}"].T
        cross = self.params.get(f"{self.i}.{('CrossKey', 'CrossValue')[which]}")
        if cross is not None:
            read = [] if kind == "joint" else [own[1 - which]]
            read += [c for j in range(reads_from, self.i) if j in self.seen for c in self.seen[j]]
            out = out + torch.cat(read, -1) @ cross.T
        out = out + self.original[which].bias
        self.errors.append((out - self.original[which](h)).square().mean())
        return out


class Half(torch.nn.Module):
    def __init__(self, latents, which):
        super().__init__()
        self.latents, self.which = latents, which

    def forward(self, h):
        return self.latents.rebuild(h, self.which)


def student(layers, params):
    model = twin.load(HERE.parent / TWIN)
    model.requires_grad_(False)
    seen, found = {}, []
    for i, layer in enumerate(layers):
        if layer is None:
            continue
        attention = model.model.layers[i].self_attn
        latents = Latents(i, layer, params, seen, [attention.k_proj, attention.v_proj])
        attention.k_proj, attention.v_proj = Half(latents, 0), Half(latents, 1)
        found.append(latents)
    return model, found


def losses(model, latents, teacher_logits, ids):
    for layer in latents:
        layer.errors = []
    logits = model(ids, use_cache=False).logits[:, :-1].flatten(0, 1)
    lm = torch.nn.functional.cross_entropy(logits, ids[:, 1:].flatten())

    def kl(temperature):
        p = torch.log_softmax(teacher_logits / temperature, -1)
        q = torch.log_softmax(logits / temperature, -1)
        return (p.exp() * (p - q)).sum(-1).mean()

    reconstruction = torch.stack([0.5 * sum(layer.errors) for layer in latents]).mean()
    t, a, r = TEMPERATURE, DISTILLATION_ALPHA, RECONSTRUCTION_ALPHA
    return {
        "lm": lm,
        "kl": kl(1.0),
        "distillation": a * t * t * kl(t) + (1 - a) * lm,
        "reconstruction": (1 - r) * lm + r * reconstruction,
    }


def run(layers, params, teacher_logits, ids):
    manifold = geoopt.EuclideanStiefel()
    params = {
        name: geoopt.ManifoldParameter(p.detach().clone(), manifold=manifold)
        if ".Up" in name
        else torch.nn.Parameter(p.detach().clone())
        for name, p in params.items()
    }
    free = [p for name, p in params.items() if ".Up" not in name]
    up = [p for name, p in params.items() if ".Up" in name]
    optimizers = [
        torch.optim.AdamW(free, lr=EUCLIDEAN_LR, weight_decay=WEIGHT_DECAY),
        geoopt.optim.RiemannianAdam(up, lr=RIEMANNIAN_LR),
    ]
    model, latents = student(layers, params)
    found = []
    for _ in range(STEPS):
        loss = losses(model, latents, teacher_logits, ids)["distillation"]
        found.append(loss.item())
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(params.values(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
    return found


def main():
    gen = torch.Generator().manual_seed(SEED)
    ids = twin.ids(gen, WINDOWS, LENGTH)
    teacher = twin.load(HERE.parent / TWIN)
    with torch.no_grad():
        teacher_logits = teacher(ids, use_cache=False).logits[:, :-1].flatten(0, 1)
    config = teacher.config
    d_kv = config.num_key_value_heads * (getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
    tensors, values, runs = {"ids": ids}, {}, {}
    for method, layers in METHODS.items():
        params = factors(method, layers, config.hidden_size, d_kv, gen)
        if method in RUNS:
            runs[method] = run(layers, params, teacher_logits, ids)
        model, latents = student(layers, params)
        tensors |= {f"{method}.{name}": p.detach().contiguous() for name, p in params.items()}
        for name in LOSSES:
            loss = losses(model, latents, teacher_logits, ids)[name]
            for p in params.values():
                p.grad = None
            loss.backward()
            values[f"{method}.{name}"] = loss.item()
            # Between them these two have every part of a gradient.
            if name in ("distillation", "reconstruction"):
                tensors |= {f"{method}.{name}.{slot}": p.grad.clone().contiguous() for slot, p in params.items()}
    save_file(tensors, HERE / "golden.safetensors")
    twin.write_json(
        HERE / "golden.json",
        {
            "made_by": twin.versions() | {"geoopt": geoopt.__version__},
            "seed": SEED,
            "compute": "float32, attn_implementation=eager, eval mode",
            "twin": TWIN,
            "temperature": TEMPERATURE,
            "distillation_alpha": DISTILLATION_ALPHA,
            "reconstruction_alpha": RECONSTRUCTION_ALPHA,
            "methods": METHODS,
            "losses": values,
            "runs": {
                "euclidean_lr": EUCLIDEAN_LR,
                "riemannian_lr": RIEMANNIAN_LR,
                "weight_decay": WEIGHT_DECAY,
                "max_grad_norm": 1.0,
                "losses": runs,
            },
            "tensors": {
                "ids": "windows of token ids",
                "METHOD.LAYER.SLOT": "a latent matrix, [d_out, d_in]",
                "METHOD.LOSS.LAYER.SLOT": "the gradient of distillation or reconstruction with respect to it",
            },
        },
    )
    for p in sorted(HERE.iterdir()):
        print(f"{p.stat().st_size:>7} {p.name}")


if __name__ == "__main__":
    main()
