"""A converted folder in vLLM, by the plugin of `python/shrink-vllm`, against what shrink computes with it.

    PYTHONPATH=python/shrink-vllm/src python tests/engines/vllm_folder.py FOLDER OPTIONS

FOLDER has an `expected.json` (tests/engines/latents.rs), OPTIONS is a JSON object for `LLM`. Prints one JSON object: the largest gap
between log-probabilities of the first texts, whether greedy tokens are shrink's, and how many tokens the cache holds.
"""

import json
import os
import sys

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"

import shrink_vllm  # the environment must be set before
import torch
from vllm import LLM, SamplingParams

shrink_vllm.register()  # what an installed plugin is asked to do, in every process


def main() -> None:
    """Scores and generates."""
    folder, options = sys.argv[1], json.loads(sys.argv[2])
    with open(os.path.join(folder, "expected.json"), encoding="utf8") as file:
        expected = json.load(file)
    engine = LLM(folder, dtype="float32", enforce_eager=True, **options)
    texts, right = expected["ids"], torch.tensor(expected["logits"]).log_softmax(-1)
    scoring = SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=0)
    gap = 0.0
    for row, answer in enumerate(engine.generate([{"prompt_token_ids": text} for text in texts], scoring, use_tqdm=False)):
        for at, token in enumerate(texts[row][1:]):
            gap = max(gap, abs(answer.prompt_logprobs[at + 1][token].logprob - right[row, at, token].item()))
    greedy = SamplingParams(max_tokens=24, temperature=0, ignore_eos=True)
    answers = engine.generate([{"prompt_token_ids": prompt} for prompt in expected["prompts"]], greedy, use_tqdm=False)
    same = all(
        list(answer.outputs[0].token_ids)[: len(tokens)] == tokens[:24] for answer, tokens in zip(answers, expected["greedy"])
    )
    cache = engine.llm_engine.vllm_config.cache_config
    print(json.dumps({"gap": gap, "same": same, "cached_tokens": cache.num_gpu_blocks * cache.block_size}))


if __name__ == "__main__":
    main()
