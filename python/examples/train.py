"""Trains a converted folder with transformers' Trainer: the matrices of the conversion, or adapters, or every weight.

    shrink convert MODEL -o out -r 4 --calibration corpus.txt
    python train.py out corpus.txt tuned --max-steps 200                     # one process
    accelerate launch --num_processes 2 train.py out corpus.txt tuned        # two
    accelerate launch --num_processes 2 --use_fsdp --fsdp_version 2 --fsdp_auto_wrap_policy TRANSFORMER_BASED_WRAP train.py …
    shrink import tuned -o out-tuned

By default what a conversion trains, and nothing else, has gradients: `w_down`, `w_up`, `w_cross`. The latter leave the Stiefel
manifold on the way, and `shrink import` brings them back to it without changing the model. The learning rate is for the latent
matrices: more than for a whole model, since they are few.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="a converted folder")
    parser.add_argument("text", help="a text file")
    parser.add_argument("output", help="folder to write")
    parser.add_argument("--max-steps", type=int, default=100)
    parser.add_argument("--batch-size", type=int, default=4, help="sequences a process and step")
    parser.add_argument("--length", type=int, default=512, help="tokens of a sequence")
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--lora", action="store_true", help="train adapters of the queries and the output (PEFT)")
    parser.add_argument("--teacher", help="the donor: its distribution is what is learned, not the text (KL)")
    return parser.parse_args()


class Distilling(Trainer):
    """Has a model learn its donor's distribution."""

    def __init__(self, *args: Any, teacher: nn.Module | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.teacher = teacher
        if teacher is not None:
            teacher.requires_grad_(False).eval().to(self.args.device)

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, **kwargs: Any) -> Any:
        """The text's negative log-likelihood, or the KL to the donor."""
        if self.teacher is None:
            return super().compute_loss(model, inputs, return_outputs=return_outputs, **kwargs)
        given = {name: inputs[name] for name in ("input_ids", "attention_mask") if name in inputs}
        outputs = model(**given)
        with torch.no_grad():
            right = self.teacher(**given).logits.float().log_softmax(-1)
        found = outputs.logits.float().log_softmax(-1)
        loss = nn.functional.kl_div(found.flatten(0, 1), right.flatten(0, 1), log_target=True, reduction="batchmean")
        return (loss, outputs) if return_outputs else loss


def main() -> None:
    """Trains and saves."""
    args = options()
    tokenizer = AutoTokenizer.from_pretrained(args.folder, trust_remote_code=True)
    model = AutoModelForCausalLM.from_pretrained(args.folder, trust_remote_code=True, dtype=torch.float32)
    if args.lora:
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(model, LoraConfig(r=8, target_modules=["q_proj", "o_proj"], task_type="CAUSAL_LM"))
    with open(args.text, encoding="utf8") as file:
        ids = tokenizer(file.read(), add_special_tokens=False).input_ids
    windows = [ids[at : at + args.length] for at in range(0, len(ids) - args.length + 1, args.length)]
    settings = TrainingArguments(
        output_dir=args.output,
        max_steps=args.max_steps,
        per_device_train_batch_size=args.batch_size,
        learning_rate=args.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=max(args.max_steps // 20, 1),
        logging_steps=max(args.max_steps // 10, 1),
        save_strategy="no",
        report_to="none",
        remove_unused_columns=False,
        use_cpu=not torch.cuda.is_available(),
        ddp_find_unused_parameters=False,
    )
    teacher = AutoModelForCausalLM.from_pretrained(args.teacher, dtype=torch.float32) if args.teacher else None
    trainer = Distilling(
        model=model,
        args=settings,
        train_dataset=[{"input_ids": window, "labels": window} for window in windows],
        data_collator=lambda rows: {name: torch.tensor([row[name] for row in rows]) for name in rows[0]},
        processing_class=tokenizer,
        teacher=teacher,
    )
    trainer.train()
    if args.lora:
        trainer.model = trainer.accelerator.unwrap_model(trainer.model).merge_and_unload()
    trainer.save_model(args.output)


if __name__ == "__main__":
    main()
