"""Tiny random models ("twins") of a family, and what transformers computes with them.

A family's make.py gives its config.json fields; `make` writes the folder: a checkpoint in the layout
the hub uses, a byte-level tokenizer, and golden.safetensors, computed with the model loaded back from
the written files. Everything is seeded: the same versions write the same bytes.
"""

import json
import platform
import shutil
import sys
import tempfile
from pathlib import Path

import safetensors
import tokenizers
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM

torch.set_num_threads(1)
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

EOS = "<|endoftext|>"
MERGES = [("Ġ", "t"), ("h", "e"), ("Ġ", "a"), ("i", "n"), ("Ġt", "he"), ("e", "r"), ("Ġ", "s")]
VOCAB = 256 + len(MERGES) + 1
EOS_ID = VOCAB - 1
PREFILL, DECODE, PADDED = 24, 8, (16, 9, 5)
LOUD = ("q_proj", "k_proj", "qkv_proj", "query_key_value", "c_attn", "gate.weight", "router.weight")

DESCRIPTIONS = {
    "prefill.ids": "the prompt, [1, T]",
    "prefill.logits": "logits at each position of the prompt, no KV cache",
    "decode.ids": "greedy tokens after prefill.ids through the KV cache; an eos does not stop it",
    "decode.logits": "decode.logits[0, k] are the logits whose argmax is decode.ids[0, k]: k = 0 is the prompt's "
    "last position (the prompt fed in one pass that fills the cache), k > 0 is the one-token step that was fed "
    "decode.ids[0, k-1]",
    "padded.ids": "a left-padded batch (pad id = the eos id)",
    "padded.mask": "1 where padded.ids holds a token, 0 where it is padding",
    "padded.logits": "logits under padded.mask with position_ids = clamp(cumsum(mask) - 1, 0); zero at the padding",
    "short.ids": "a prompt that fits in the original context, so the dynamic scaling does not act on it (longrope "
    "takes its short factors)",
    "short.logits": "logits at each position of short.ids, no KV cache",
}


def versions():
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "tokenizers": tokenizers.__version__,
        "safetensors": safetensors.__version__,
    }


def write_json(path, value):
    Path(path).write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def tokenizer(folder):
    """GPT-2's byte-level BPE with seven merges and an eos."""
    vocab = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    for a, b in MERGES:
        vocab[a + b] = len(vocab)
    tok = Tokenizer(models.BPE(vocab=vocab, merges=MERGES))
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.decoder = decoders.ByteLevel()
    tok.add_special_tokens([AddedToken(EOS, special=True)])
    assert tok.get_vocab_size() == VOCAB and tok.token_to_id(EOS) == EOS_ID
    tok.save(str(folder / "tokenizer.json"), pretty=False)
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": EOS,
            "clean_up_tokenization_spaces": False,
        },
    )


def one_plus(model):
    """Whether the norms multiply by 1 + w, so that a gain is stored around 0."""
    return model.config.model_type.startswith("gemma")


def fill(model, seed):
    """Weights large enough that attention is far from uniform and every bias and norm matters."""
    gen = torch.Generator().manual_seed(seed)
    zero = 1.0 if one_plus(model) else 0.0
    with torch.no_grad():
        for name, p in sorted(model.named_parameters()):
            noise = torch.randn(p.shape, generator=gen)
            if name.endswith((".bias", "_proj_bias")):
                p.copy_(0.3 * noise)
            elif any(s in name for s in ("q_norm", "k_norm")):  # or scores would all but vanish
                p.copy_(1.6 + 0.3 * noise.clamp(-3, 3) - zero)
            elif "norm" in name or ".ln_" in name:
                p.copy_(1.0 + 0.2 * noise.clamp(-3, 3) - zero)
            elif name.endswith(".sinks"):
                p.copy_(1.0 + 0.5 * noise)
            elif any(s in name for s in ("embed_tokens", "embed_in", "wte", "wpe")):
                p.copy_((0.2 if zero else 0.4) * noise)  # Gemma multiplies what it looks up by sqrt(d_model)
            elif any(s in name for s in LOUD):
                p.copy_(0.3 * noise)
            else:
                p.copy_(0.2 * noise)


def save_weights(model, folder, buffers=False):
    """save_pretrained's file; for gpt2 renamed to what openai-community/gpt2 holds.

    With `buffers` also the causal masks and the frequencies that older files of gpt2 and gpt_neox carry.
    """
    kind = model.config.model_type
    buffers = kind == "gpt2" or buffers
    with tempfile.TemporaryDirectory() as tmp:
        model.save_pretrained(tmp)
        saved = Path(tmp) / "model.safetensors"
        if not buffers:
            shutil.copyfile(saved, folder / "model.safetensors")
            return
        tensors = {k.removeprefix("transformer."): v for k, v in load_file(saved).items()}
    n = model.config.max_position_embeddings
    causal = torch.tril(torch.ones(n, n)).view(1, 1, n, n)
    for i in range(model.config.num_hidden_layers):
        if kind == "gpt2":
            tensors[f"h.{i}.attn.bias"] = causal.clone()
            continue
        at = f"gpt_neox.layers.{i}.attention."
        tensors |= {at + "bias": causal.to(torch.uint8), at + "masked_bias": torch.tensor(-1e9)}
        tensors[at + "rotary_emb.inv_freq"] = model.gpt_neox.rotary_emb.inv_freq.clone()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def load(folder):
    model, info = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    for key in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        assert not info[key], (key, info[key])
    return model.eval()


def ids(gen, *shape):
    return torch.randint(0, EOS_ID, shape, generator=gen)


def text(model):
    """The stack of layers: where each family keeps it."""
    match model.config.model_type:
        case "gpt2":
            return model.transformer
        case "gpt_neox":
            return model.gpt_neox
        case "gemma3":
            return model.model.language_model
        case _:
            return model.model


def attention(layer):
    return next(getattr(layer, name) for name in ("self_attn", "attention", "attn") if hasattr(layer, name))


def key_projection(attn):
    """The name of the matrix that makes keys, alone or fused with others."""
    return next(name for name in ("k_proj", "qkv_proj", "query_key_value", "c_attn") if hasattr(attn, name))


def keys(model, prompt):
    """The first and the last layer's keys: what their projection takes and, with QK-norm, what their norm gives."""
    layers = text(model).h if model.config.model_type == "gpt2" else text(model).layers
    out, hooks = {}, []
    for i in (0, len(layers) - 1):
        attn = attention(layers[i])

        def before(_module, args, i=i):
            out[f"k_in.{i}"] = args[0][0].clone()

        def normed(_module, _args, k, i=i):
            k = k if k.shape[1] == prompt.shape[1] else k.transpose(1, 2)  # some norm [heads, T, head_dim]
            out[f"k_norm.{i}"] = k[0].flatten(1).clone()

        hooks.append(getattr(attn, key_projection(attn)).register_forward_pre_hook(before))
        if hasattr(attn, "k_norm"):
            hooks.append(attn.k_norm.register_forward_hook(normed))
    model(prompt, use_cache=False)
    for h in hooks:
        h.remove()
    return dict(sorted(out.items()))


def decode(model, prompt):
    """DECODE greedy tokens through the KV cache, and the logits they were chosen from."""
    tokens, rows, step, cache = [], [], prompt, None
    for _ in range(DECODE):
        out = model(step, cache=cache, use_cache=True)
        cache, row = out.cache, out.logits[:, -1]
        step = row.argmax(-1, keepdim=True)
        tokens.append(step)
        rows.append(row)
    tokens, rows = torch.cat(tokens, 1), torch.stack(rows, 1)
    # A forward that does not know an argument's name drops it in silence: a cache that is none would go unseen.
    whole = model(torch.cat([prompt, tokens], 1), use_cache=False).logits[:, prompt.shape[1] - 1 : -1]
    assert (whole - rows).abs().max() < 1e-4, "cached decoding is not the model"
    return tokens, rows


def padded_logits(model, batch, mask):
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    logits = model(batch, attention_mask=mask, position_ids=positions, use_cache=False).logits
    return logits * mask.unsqueeze(-1)


def fits(config):
    """The longest prompt that a RoPE scaling which depends on the length leaves alone; None without one."""
    rope = getattr(config, "rope_parameters", None) or {}
    match rope.get("rope_type"):
        case "dynamic":
            return config.max_position_embeddings
        case "longrope":
            return rope["original_max_position_embeddings"]
        case _:
            return None


@torch.no_grad()
def golden(model, seed):
    gen = torch.Generator().manual_seed(seed + 1000)
    short = fits(model.config.get_text_config())
    t = {"prefill.ids": ids(gen, 1, PREFILL)}
    t["prefill.logits"] = model(t["prefill.ids"], use_cache=False).logits
    t |= keys(model, t["prefill.ids"])
    if short:
        t["short.ids"] = ids(gen, 1, short - 4)
        t["short.logits"] = model(t["short.ids"], use_cache=False).logits
        return t

    t["decode.ids"], t["decode.logits"] = decode(model, t["prefill.ids"])
    top = t["decode.logits"][0].topk(2).values
    assert (top[:, 0] - top[:, 1]).min() > 0.02, "a greedy choice is too close: take another seed"
    assert len(t["decode.ids"].unique()) >= 5, "too monotonous a continuation: take another seed"

    width = PADDED[0]
    batch = torch.full((len(PADDED), width), EOS_ID)
    mask = torch.zeros(len(PADDED), width, dtype=torch.int64)
    for row, n in enumerate(PADDED):
        batch[row, width - n :] = ids(gen, n)
        mask[row, width - n :] = 1
    t |= {"padded.ids": batch, "padded.mask": mask, "padded.logits": padded_logits(model, batch, mask)}
    return t


def make(folder, config, seed, style="classic", notes=(), buffers=False):
    """Write the twin of `config` (config.json's fields) into `folder`.

    style "classic" writes the fields as given; "v5" writes what this transformers saves. `buffers` is save_weights'.
    """
    tokens = {"bos_token_id": EOS_ID, "eos_token_id": EOS_ID}
    config = config | (tokens if "text_config" in config else {"vocab_size": VOCAB} | tokens)
    tokenizer(folder)
    write_json(folder / "config.json", config | {"torch_dtype": "float32"})
    write_json(folder / "generation_config.json", {"bos_token_id": EOS_ID, "eos_token_id": EOS_ID})
    model = AutoModelForCausalLM.from_config(
        AutoConfig.from_pretrained(folder), dtype=torch.float32, attn_implementation="eager"
    ).eval()
    fill(model, seed)
    save_weights(model, folder, buffers)
    if style == "v5":
        with tempfile.TemporaryDirectory() as tmp:
            model.save_pretrained(tmp)
            shutil.copyfile(Path(tmp) / "config.json", folder / "config.json")

    tensors = {k: v.contiguous() for k, v in golden(load(folder), seed).items()}
    with torch.no_grad():
        before = model(tensors["prefill.ids"], use_cache=False).logits
    assert torch.equal(before, tensors["prefill.logits"]), "the saved folder is not the model that was saved"
    save_file(tensors, folder / "golden.safetensors")

    described = {}
    for name, v in tensors.items():
        described[name] = {
            "dtype": str(v.dtype).removeprefix("torch."),
            "shape": list(v.shape),
            "what": DESCRIPTIONS.get(name) or describe_keys(name, model),
        }
    write_json(
        folder / "golden.json",
        {
            "made_by": versions(),
            "seed": {"weights": seed, "tokens": seed + 1000},
            "compute": "float32, attn_implementation=eager, eval mode, the model loaded back from this folder",
            "config_style": style,
            "notes": list(notes),
            "tensors": described,
        },
    )
    report(folder)


def describe_keys(name, model):
    kind, layer = name.split(".")
    if kind == "k_norm":
        return f"layer {layer}'s keys after k_norm and before RoPE on prefill.ids, [T, kv heads * head_dim]"
    block = text(model).h[int(layer)] if model.config.model_type == "gpt2" else text(model).layers[int(layer)]
    normed = hasattr(block, "input_layernorm") or hasattr(block, "ln_1")
    where = "after the norm" if normed else "the residual stream itself: this family norms a sublayer's output"
    return f"the input of layer {layer}'s {key_projection(attention(block))} ({where}) on prefill.ids, [T, d_model]"


def report(folder):
    with safe_open(folder / "model.safetensors", "pt") as f:
        print(f"{folder.name}: {len(f.keys())} tensors, metadata {f.metadata()}")
    for p in sorted(folder.iterdir()):
        if p.is_file():
            assert p.stat().st_size <= 200_000, p
            print(f"  {p.stat().st_size:>7} {p.name}")


sys.dont_write_bytecode = True
