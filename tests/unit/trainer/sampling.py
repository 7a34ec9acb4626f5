"""A reinforcement job's supervisor, in the test's own process: plain transformers sample, a function rewards."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from services.trainer.protocol import Rollouts, TrainSpec, WantRollouts
from shared.rollout_records import (
    RolloutGroup,
    RolloutHeader,
    RolloutSample,
    RolloutStats,
    read_rollouts,
    rollout_file,
    write_rollouts,
)

Reward = Callable[[dict[str, Any], str], float | None]


class Sampler:
    """Answers each question once; a second time from its file, as long as the model is the same."""

    def __init__(
        self, spec: TrainSpec, folder: Path, reward: Reward, *, stop_at: int = 0, stop_at_valid: int = 0
    ) -> None:
        self.asked: list[WantRollouts] = []
        self._spec = spec
        self._folder = folder
        self._reward = reward
        self._stops = {(stop_at, False), (stop_at_valid, True)} - {(0, False), (0, True)}
        self._tokenizer: Any = AutoTokenizer.from_pretrained(spec.base_folder)

    def __call__(self, wanted: WantRollouts) -> Rollouts | None:
        if (wanted.step, wanted.validation) in self._stops:
            return None
        self.asked.append(wanted)
        path = rollout_file(self._folder, wanted.step, validation=wanted.validation)
        if not _is_by(path, wanted.sha256):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(self._rolled_out(wanted))
        return Rollouts(step=wanted.step, validation=wanted.validation, path=str(path))

    def _rolled_out(self, wanted: WantRollouts) -> bytes:
        spec = self._spec
        file = spec.validation_path if wanted.validation else spec.training_path
        rows = [msgspec.json.decode(line) for line in Path(str(file)).read_bytes().splitlines()]
        policy = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(spec.base_folder), wanted.folder).eval()
        with torch.random.fork_rng():
            torch.manual_seed(1000 * spec.seed + 2 * wanted.step + wanted.validation)
            groups = [self._group(policy, line, rows[line - 1], wanted.samples) for line in wanted.lines]
        rewards = [one.reward for group in groups for one in group.samples if one.reward is not None]
        mean = sum(rewards) / max(1, len(rewards))
        stats = RolloutStats(groups=len(groups), samples=len(rewards), reward_mean=mean, reward_std=0.0)
        header = RolloutHeader(step=wanted.step, validation=wanted.validation, policy=wanted.sha256, stats=stats)
        return write_rollouts(header, groups)

    def _group(self, policy: Any, line: int, item: dict[str, Any], samples: int) -> RolloutGroup:
        assert self._spec.reinforcement is not None
        prompt = self._tokenizer.apply_chat_template(
            item["messages"], add_generation_prompt=True, return_dict=True, return_tensors="pt"
        )["input_ids"]
        with torch.no_grad():
            made = policy.generate(
                input_ids=prompt.repeat(samples, 1), do_sample=True, top_k=0, return_dict_in_generate=True,
                max_new_tokens=self._spec.reinforcement.max_completion_tokens, output_logits=True,
            )  # fmt: skip
        logprobs_STV = torch.stack(made.logits, dim=1).log_softmax(dim=-1)
        answers_ST = made.sequences[:, prompt.shape[1] :]
        found = [self._sample(item, tokens, each) for tokens, each in zip(answers_ST, logprobs_STV, strict=True)]
        return RolloutGroup(line=line, prompt_tokens=prompt[0].tolist(), item=item, samples=found)

    def _sample(self, item: dict[str, Any], answer: torch.Tensor, logprobs: torch.Tensor) -> RolloutSample:
        """Form a sample of T tokens, of which logprobs has T, V."""
        tokens: list[int] = answer.tolist()
        end = self._tokenizer.eos_token_id
        is_cut = end not in tokens
        tokens = tokens if is_cut else tokens[: tokens.index(end) + 1]
        text = self._tokenizer.decode(tokens, skip_special_tokens=True)
        return RolloutSample(
            tokens=tokens,
            logprobs=logprobs.gather(1, answer[:, None])[: len(tokens), 0].tolist(),
            text=text,
            finish_reason="length" if is_cut else "stop",
            reward=self._reward(item, text),
        )


def _is_by(path: Path, policy: str) -> bool:
    """Whether a step's file is there, with answers by this model."""
    return path.exists() and read_rollouts(path)[0].policy == policy


def validation_rewards(folder: Path) -> list[float]:
    """Return the mean reward of each evaluation, in order."""
    files = sorted((folder / "rollouts").glob("valid-*.jsonl"))
    return [read_rollouts(file)[0].stats.reward_mean for file in files]
