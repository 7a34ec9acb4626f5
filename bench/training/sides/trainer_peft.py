"""transformers.Trainer with peft, as peft's documentation has it: padded batches with labels of -100.

With `quantization` "nf4" it is plain QLoRA: bitsandbytes' 4-bit layers, prepared by peft, without checkpointing, which
ours does not use either. With `finetuning_type` "full" there is no peft: every weight is trained.
"""

from __future__ import annotations

import tempfile
from typing import Any

from bench.training.work import Answer, Clock, Work, run


def train(work: Work) -> Answer:
    from transformers import AutoTokenizer, DataCollatorForSeq2Seq, Trainer, TrainingArguments

    tokenizer = AutoTokenizer.from_pretrained(work.base)
    rows = [{**row, "attention_mask": [1] * len(row["input_ids"])} for row in work.read_tokens()]
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            peft_model(work),
            TrainingArguments(folder, **arguments(work)),
            data_collator=DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=-100),
            train_dataset=rows,  # type: ignore[arg-type]
        )
        return timed(trainer, work)


def arguments(work: Work) -> dict[str, Any]:
    """The settings of the comparison, for every program that is built on transformers.Trainer."""
    return {
        "per_device_train_batch_size": work.batch_size, "max_steps": work.total_steps,
        "learning_rate": work.rate, "lr_scheduler_type": "constant", "weight_decay": 0.0,
        "max_grad_norm": 1.0, "optim": "adamw_torch", "seed": work.seed, "train_sampling_strategy": "sequential",
        "bf16": False, "gradient_checkpointing": False, "use_cpu": True, "save_strategy": "no", "logging_steps": 1,
        "report_to": [], "disable_tqdm": True,
    }  # fmt: skip


def peft_model(work: Work) -> Any:
    import torch
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    options: dict[str, Any] = {}
    if work.quantization == "nf4":
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.float32,
        )  # fmt: skip
        options["device_map"] = {"": "cpu"}
    base = AutoModelForCausalLM.from_pretrained(work.base, dtype=torch.float32, **options)
    if work.quantization == "nf4":
        base = prepare_model_for_kbit_training(base, use_gradient_checkpointing=False)
    if work.finetuning_type == "full":
        return base
    torch.manual_seed(work.seed)  # the adapter's first weights are then the same everywhere
    return get_peft_model(base, lora(work, LoraConfig))


def lora(work: Work, config: Any) -> Any:
    return config(
        r=work.rank, lora_alpha=work.alpha, lora_dropout=0.0, target_modules=list(work.targets), bias="none",
        task_type="CAUSAL_LM",
    )  # fmt: skip


def timed(trainer: Any, work: Work) -> Answer:
    """Let a transformers.Trainer train, and look at the clock after each of its steps."""
    from transformers import TrainerCallback

    clock = Clock(work)

    class Times(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            clock.step()

    trainer.add_callback(Times())
    trainer.train()
    clock.answer.losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return clock.finish()


if __name__ == "__main__":
    run(train, "torch", "transformers", "peft")
