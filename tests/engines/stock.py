"""A folder as stock transformers runs it: no remote code, nothing of ours.

    python tests/engines/stock.py FOLDER TEXT WINDOWS LENGTH PROMPT TOKENS

Prints one JSON object: the class, the perplexity of the first WINDOWS windows of LENGTH tokens, the greedy continuation of PROMPT
by TOKENS tokens, and the bytes that its cache then holds.
"""

import json
import math
import sys

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

folder, text, windows, length, prompt, tokens = sys.argv[1:]
windows, length, tokens = int(windows), int(length), int(tokens)
torch.set_num_threads(1)
model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()
tokenizer = AutoTokenizer.from_pretrained(folder)
with open(text, encoding="utf8") as file:
    ids = tokenizer(file.read(), add_special_tokens=False).input_ids
total = scored = 0
with torch.no_grad():
    for start in range(0, windows * length, length):
        window = torch.tensor([ids[start : start + length]])
        logits = model(window, use_cache=False).logits[0, :-1].float()
        total += torch.nn.functional.cross_entropy(logits, window[0, 1:], reduction="sum").item()
        scored += length - 1
    given = tokenizer(prompt, return_tensors="pt")
    out = model.generate(
        **given, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False, return_dict_in_generate=True
    )
cache = getattr(out, "past_key_values", None) or getattr(out, "cache", None)
held = [x for layer in cache.layers for x in (layer.keys, layer.values) if x is not None]
found = {
    "transformers": transformers.__version__,
    "class": type(model).__name__,
    "perplexity": math.exp(total / scored),
    "tokens": out.sequences[0, given.input_ids.shape[1] :].tolist(),
    "cache_bytes": sum(x.numel() * x.element_size() for x in held),
    "cached_tokens": cache.get_seq_length(),
}
print(json.dumps(found))
