"""TRL's SFTTrainer, DPOTrainer, KTOTrainer and ORPOTrainer with its defaults, but float32 and no checkpointing.

TRL turns bf16 and checkpointing on by itself; both would be slower here (a CPU without bf16 products, memory enough).
Its assistant_only_loss needs generation markers in the chat template, which the base's template does not have, so
SFTTrainer gets tokens and labels. The others take text only; it comes to the same tokens. A reference's log
probabilities are computed once, before the first step, with precompute_ref_log_probs.
"""

from __future__ import annotations

import tempfile

from bench.training.sides.trainer_peft import arguments, peft_model, timed
from bench.training.work import Answer, Work, run


def train(work: Work) -> Answer:
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

    rows = Dataset.from_list(work.read_tokens())
    tokenizer = AutoTokenizer.from_pretrained(work.base)
    with tempfile.TemporaryDirectory() as folder:
        if work.method == "dpo":
            config = DPOConfig(
                folder, beta=work.beta, precompute_ref_log_probs=True, precompute_ref_batch_size=work.batch_size,
                max_length=2048, **arguments(work),
            )  # fmt: skip
            return timed(
                DPOTrainer(peft_model(work), args=config, train_dataset=rows, processing_class=tokenizer), work
            )
        if work.method == "kto":
            from trl import KTOConfig, KTOTrainer

            kto = KTOConfig(
                folder, beta=work.beta, precompute_ref_log_probs=True, precompute_ref_batch_size=work.batch_size,
                max_length=2048, **arguments(work),
            )  # fmt: skip
            return timed(KTOTrainer(peft_model(work), args=kto, train_dataset=rows, processing_class=tokenizer), work)
        if work.method == "orpo":
            from trl.experimental.orpo import ORPOConfig, ORPOTrainer

            orpo = ORPOConfig(folder, beta=work.beta, max_length=2048, **arguments(work))
            return timed(ORPOTrainer(peft_model(work), args=orpo, train_dataset=rows, processing_class=tokenizer), work)
        settings = SFTConfig(folder, max_length=2048, **arguments(work))
        return timed(SFTTrainer(peft_model(work), settings, train_dataset=rows, processing_class=tokenizer), work)


if __name__ == "__main__":
    run(train, "torch", "transformers", "peft", "trl")
