"""Train the small GPT-2 that `cargo xtask bench quality` measures.

python xtask/bench/gpt2.py TEXT_DIR OUT [--steps N] [--checkpoint FILE] [--threads N]

There is no GPT-2 family model with trained weights that is small, free and at hand, and a random one tells nothing
about compression: what a method keeps is what training put there. TEXT_DIR holds the texts that goldens/README.md
lists. Training reads five of Austen's novels and the State of the Union addresses of 1945 to 1994, so that of what
is measured on, heldout.txt (later addresses) is new text of a known kind and mobydick.txt is new altogether.

An hour and a quarter on one core. The seed fixes batches and weights; another CPU or another number of threads changes
the last bits.
"""

import argparse
import json
import math
import platform
import re
import shutil
import tempfile
import time
from pathlib import Path

import tokenizers
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM

SEED = 11
EOS = "<|endoftext|>"
TEXTS = ("austen_five", "sotu_1945_1994")
CONTEXT = 512
CONFIG = {
    "architectures": ["GPT2LMHeadModel"],
    "model_type": "gpt2",
    "activation_function": "gelu_new",
    "vocab_size": 2048,
    "n_embd": 192,
    "n_layer": 6,
    "n_head": 6,
    "n_positions": CONTEXT,
    "n_ctx": CONTEXT,
    "n_inner": None,
    "layer_norm_epsilon": 1e-5,
    "attn_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "resid_pdrop": 0.0,
    "initializer_range": 0.02,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "torch_dtype": "float32",
}
BATCH = 4  # windows of CONTEXT tokens
LEARNING_RATE, WARMUP, DECAY = 3e-3, 60, 0.1


def documents(folder):
    """The texts, the novels in chapters."""
    found = []
    for name in TEXTS:
        text = (folder / f"{name}.txt").read_text(encoding="utf-8")
        found += re.split(r"\n(?=(?:CHAPTER|Chapter|VOLUME)\b)", text)
    return found


def train_tokenizer(texts):
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=CONFIG["vocab_size"],
        special_tokens=[EOS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tok.train_from_iterator(texts, trainer)
    assert tok.get_vocab_size() == CONFIG["vocab_size"] and tok.token_to_id(EOS) == 0
    return tok


def train(ids, steps, checkpoint):
    """The model and the mean loss of its last steps."""
    torch.manual_seed(SEED)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**CONFIG), dtype=torch.float32)
    params = list(model.parameters())
    print(f"{sum(p.numel() for p in params)} parameters, {len(ids)} training tokens", flush=True)
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in params if p.dim() > 1], "weight_decay": DECAY},
            {"params": [p for p in params if p.dim() == 1], "weight_decay": 0.0},
        ],
        betas=(0.9, 0.95),
        fused=True,
    )
    first, mean = 0, None
    if checkpoint and checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first, mean = state["step"], state["mean"]
        print(f"going on from step {first}", flush=True)
    began = time.monotonic()
    for step in range(first, steps):
        ramp = min(1.0, (step + 1) / WARMUP)
        scale = ramp * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps)))
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * scale
        gen = torch.Generator().manual_seed(SEED * 1_000_000 + step)
        starts = torch.randint(0, len(ids) - CONTEXT - 1, (BATCH,), generator=gen)
        batch = torch.stack([ids[s : s + CONTEXT + 1] for s in starts.tolist()])
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(batch[:, :-1], use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()
        mean = loss.item() if mean is None else 0.95 * mean + 0.05 * loss.item()
        if (step + 1) % 20 == 0:
            rate = (time.monotonic() - began) / (step + 1 - first)
            print(f"step {step + 1} loss {mean:.3f} {rate:.2f} s/step", flush=True)
        if checkpoint and ((step + 1) % 100 == 0 or step + 1 == steps):
            part = checkpoint.with_suffix(".part")
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            torch.save({**state, "step": step + 1, "mean": mean}, part)
            part.replace(checkpoint)
    return model, mean


def write_json(path, value):
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def main():
    args = argparse.ArgumentParser(description="Train the small GPT-2 of `cargo xtask bench quality`.")
    args.add_argument("text_dir", type=Path)
    args.add_argument("out", type=Path)
    args.add_argument("--steps", type=int, default=6000)
    args.add_argument("--checkpoint", type=Path, help="written every 100 steps; training goes on from it")
    args.add_argument("--threads", type=int, default=1)
    args = args.parse_args()
    torch.set_num_threads(args.threads)
    texts = documents(args.text_dir)
    tok = train_tokenizer(texts)
    ids = []
    for e in tok.encode_batch(texts):
        ids += [0, *e.ids]
    model, loss = train(torch.tensor(ids), args.steps, args.checkpoint)

    # Complete or not there: a benchmark must not find half a folder.
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=args.out.parent) as tmp:
        folder = Path(tmp) / "model"
        saved = Path(tmp) / "saved"
        folder.mkdir()
        model.to(torch.float32).save_pretrained(saved)
        shutil.copyfile(saved / "model.safetensors", folder / "model.safetensors")
        tok.save(str(folder / "tokenizer.json"), pretty=False)
        write_json(folder / "config.json", CONFIG)
        write_json(folder / "generation_config.json", {"bos_token_id": 0, "eos_token_id": 0})
        write_json(
            folder / "tokenizer_config.json",
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "eos_token": EOS,
                "model_max_length": CONTEXT,
                "clean_up_tokenization_spaces": False,
            },
        )
        write_json(
            folder / "training.json",
            {
                "texts": [f"{name}.txt" for name in TEXTS],
                "seed": SEED,
                "steps": args.steps,
                "tokens": args.steps * BATCH * CONTEXT,
                "mean_loss_at_the_end": loss,
                "made_by": {
                    "python": platform.python_version(),
                    "torch": torch.__version__,
                    "transformers": transformers.__version__,
                    "tokenizers": tokenizers.__version__,
                },
            },
        )
        folder.replace(args.out)
    print(f"{args.out}: mean loss {loss:.3f} at the end", flush=True)


if __name__ == "__main__":
    main()
