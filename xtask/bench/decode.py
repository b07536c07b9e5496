"""What decoding takes on torch, as one line of JSON: `cargo xtask bench decode` runs it.

python xtask/bench/decode.py SIDE MODEL BATCH PREFILL REPEAT CONTEXT...

SIDE is `f32` or `bf16` (transformers, its own cache) or `cacheshrink` (f32; MODEL converted at 4x with as little calibration as
it takes, since the numbers in the matrices do not matter here, its own latent cache, from which it rebuilds K and V at each
step). A cache is filled with random numbers (cacheshrink's by reading tokens), a step made and not counted, and the median of
REPEAT more printed; PREFILL tokens from an empty cache, up to three times, with the logits of the last token alone, as
`generate` has it. Memory is the most that was resident from start to end.
"""

import json
import statistics
import sys
import time
import warnings

warnings.filterwarnings("ignore")
import torch  # noqa: E402
import transformers  # noqa: E402

transformers.logging.set_verbosity_error()


def peak():
    """The most bytes that were resident so far."""
    with open("/proc/self/status") as status:
        line = next(line for line in status if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def load(side, path):
    if side != "cacheshrink":
        dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[side]
        return transformers.AutoModelForCausalLM.from_pretrained(path, dtype=dtype)
    from cacheshrink import convert_to_mla

    model, _ = convert_to_mla(
        path,
        compression_ratio=4.0,
        device="cpu",
        dtype=torch.float32,
        use_calibration=False,
        verbose=False,
    )
    return model


def read(model, batch, tokens):
    """The cache after random tokens, 512 a pass."""
    past, vocabulary = None, model.config.vocab_size
    for start in range(0, tokens, 512):
        ids = torch.randint(vocabulary, (batch, min(512, tokens - start)))
        past = model(input_ids=ids, past_key_values=past, use_cache=True, logits_to_keep=1).past_key_values
    return past


def filled(model, batch, tokens):
    """A cache of transformers' own with random numbers in it."""
    config = model.config
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    past = transformers.DynamicCache(config=config)
    for layer in range(config.num_hidden_layers):
        keys, values = torch.randn(2, batch, heads, tokens, width, dtype=model.dtype)
        past.update(keys, values, layer)
    return past


def main():
    side, path, batch, prefill, repeat = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:6])
    contexts = [int(context) for context in sys.argv[6:]]
    torch.manual_seed(0)
    measured = []

    def note(what, tokens, pass_tokens, seconds):
        pass_s = statistics.median(seconds)
        measured.append(
            {
                "what": what,
                "tokens": tokens,
                "batch_size": batch,
                "pass_s": pass_s,
                "tokens_per_s": pass_tokens / pass_s,
            }
        )

    with torch.inference_mode():
        model = load(side, path).eval()
        seconds = []
        for _ in range(min(repeat, 3)):
            begun = time.perf_counter()
            read(model, batch, prefill)
            seconds.append(time.perf_counter() - begun)
        note("prefill", prefill, batch * prefill, seconds)
        for context in contexts:
            past, seconds = (read if side == "cacheshrink" else filled)(model, batch, context), []
            for _ in range(repeat + 1):
                ids = torch.randint(model.config.vocab_size, (batch, 1))
                begun = time.perf_counter()
                past = model(input_ids=ids, past_key_values=past, use_cache=True).past_key_values
                seconds.append(time.perf_counter() - begun)
            note("decode", context, batch, seconds[1:])
            del past
    print(json.dumps({"peak_bytes": peak(), "measured": measured}))


main()
