"""What a step of cacheshrink's trainer takes, as one line of JSON: `cargo xtask bench train` runs it.

python xtask/bench/train.py MODEL TEXT BATCH LENGTH STEPS

Converts MODEL at 4x with as little calibration as it takes, since the numbers in the matrices do not matter here, and then
trains it by cacheshrink's own loop and loss (distillation) on windows of TEXT. Memory is the most that was resident while it
trained: what the conversion left behind is given back first, and the system's high-water mark is set anew.
"""

import ctypes
import gc
import json
import statistics
import sys
import tempfile
import time
import warnings

warnings.filterwarnings("ignore")
import torch  # noqa: E402
import transformers  # noqa: E402

transformers.logging.set_verbosity_error()
import cacheshrink  # noqa: E402
from cacheshrink import MLATrainer, convert_to_mla  # noqa: E402
from cacheshrink.trainer import TrainingConfig  # noqa: E402


def resident(field):
    """A line of /proc/self/status, in bytes."""
    with open("/proc/self/status") as status:
        line = next(line for line in status if line.startswith(field))
    return int(line.split()[1]) * 1024


def windows(tokenizer, text, count, length):
    """Texts of exactly so many tokens."""
    ids = tokenizer(text)["input_ids"]
    return [tokenizer.decode(ids[i * length : (i + 1) * length]) for i in range(count)]



def main():
    model_path, text_path = sys.argv[1:3]
    batch, length, steps = (int(arg) for arg in sys.argv[3:])
    torch.manual_seed(0)
    text = open(text_path).read()[:2_000_000]
    model, tokenizer = convert_to_mla(
        model_path,
        compression_ratio=4.0,
        compression_method="separate",
        dtype=torch.float32,
        device="cpu",
        calibration_texts=[text[i * 2000 : (i + 1) * 2000] for i in range(4)],
        num_calibration_samples=4,
        max_calibration_length=64,
        verbose=False,
    )
    texts = windows(tokenizer, text, batch * (steps + 1), length)
    teacher = transformers.AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32)
    teacher.requires_grad_(False)
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    with open("/proc/self/clear_refs", "w") as clear:
        clear.write("5")
    before = resident("VmRSS")

    config = TrainingConfig(num_epochs=1, batch_size=batch, max_length=length, output_dir=tempfile.mkdtemp())
    trainer = MLATrainer(model, tokenizer, config=config, teacher_model=teacher)
    # A step ends when the second optimiser's does.
    ends, tokens, step = [], [], trainer.riemannian_optimizer.step

    def timed_step(*args, **kwargs):
        found = step(*args, **kwargs)
        ends.append(time.perf_counter())
        return found

    trainer.riemannian_optimizer.step = timed_step
    forward = model.forward

    def counted(*args, **kwargs):
        tokens.append(kwargs["input_ids"].numel())
        return forward(*args, **kwargs)

    model.forward = counted
    trainer.train(texts)
    times = [b - a for a, b in zip(ends, ends[1:])]
    found = {
        "median_s": statistics.median(times),
        "times_s": times,
        "tokens_a_step": statistics.median(tokens),
        "peak_bytes": resident("VmHWM"),
        "resident_before_bytes": before,
        "cacheshrink": getattr(cacheshrink, "__version__", None),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
