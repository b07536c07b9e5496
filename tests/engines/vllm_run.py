"""A folder as stock vLLM runs it on the CPU.

    python tests/engines/vllm_run.py FOLDER WINDOWS PROMPT TOKENS

WINDOWS is a JSON file of windows of token ids. Prints one JSON object: the perplexity over them and the greedy continuation of PROMPT.
"""

import json
import math
import os
import sys

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")

from vllm import LLM, SamplingParams  # noqa: E402: the environment must be set before

folder, windows, prompt, tokens = sys.argv[1:]
with open(windows, encoding="utf8") as file:
    windows = json.load(file)
with open(os.path.join(folder, "config.json"), encoding="utf8") as file:
    dtype = json.load(file)["torch_dtype"]  # by itself it takes 16 bits for a folder of f32
engine = LLM(folder, dtype=dtype, enforce_eager=True)
scoring = SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=0)
total = scored = 0
for window in windows:
    [answer] = engine.generate({"prompt_token_ids": window}, scoring, use_tqdm=False)
    for token, logprobs in zip(window[1:], answer.prompt_logprobs[1:]):
        total -= logprobs[token].logprob
        scored += 1
greedy = SamplingParams(max_tokens=int(tokens), temperature=0, ignore_eos=True)
[answer] = engine.generate(prompt, greedy, use_tqdm=False)
print(json.dumps({"perplexity": math.exp(total / scored), "tokens": list(answer.outputs[0].token_ids)}))
