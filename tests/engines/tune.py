"""A folder of DeepSeek's layout, every weight of it trained for a few steps by stock transformers.

    python tests/engines/tune.py FOLDER OUT TEXT STEPS LENGTH

An export scales the rows that make the latent far down. Adam's steps are as long whatever the numbers are, so those rows get a rate as
much smaller as they are: at the others' they would be noise after one step, and the norm behind them no longer linear.
"""

import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

folder, out, text, steps, length = sys.argv[1:]
steps, length = int(steps), int(length)
torch.manual_seed(0)
torch.set_num_threads(1)
model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").train()
tokenizer = AutoTokenizer.from_pretrained(folder)
with open(text, encoding="utf8") as file:
    ids = tokenizer(file.read(), add_special_tokens=False).input_ids
rank, rate = model.config.kv_lora_rank, 1e-4
groups = []
for name, weight in model.named_parameters():
    shrunk = weight[:rank].std().item() / weight[rank:].std().item() if "kv_a_proj_with_mqa" in name else 1.0
    groups.append({"params": [weight], "lr": rate * shrunk})
optimiser = torch.optim.AdamW(groups)
for step in range(steps):
    window = torch.tensor([ids[step * length : (step + 1) * length]])
    loss = model(window, labels=window, use_cache=False).loss
    loss.backward()
    optimiser.step()
    optimiser.zero_grad()
model.save_pretrained(out)
tokenizer.save_pretrained(out)
print(f'{{"loss": {loss.item()}}}')
