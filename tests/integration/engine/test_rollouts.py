"""Rollouts by the real engine: the test plays the training process, and wants answers of a step's model."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx2
import msgspec
import pytest
from msgspec.structs import replace

from services.trainer.failures import TrainingFailed
from services.trainer.jobs.publishing import withdraw
from services.trainer.rollouts import gathering as module
from services.trainer.rollouts.gathering import gathering
from shared import ids
from shared.adapters import adapter_digest
from shared.errors import LeaseLost
from shared.grading.judging import score_format
from shared.grading.means import JudgeFailed
from shared.rollout_records import RolloutGroup, RolloutHeader, read_rollouts
from shared.schemas.graders import SamplingParams
from shared.settings import JudgeEndpoint
from tests.fakes.upstream import Upstream
from tests.integration.inference_stack import BASE_ID, KEY, InferenceStack, make_adapter
from tests.integration.rollout_scene import GROUP, TOKENS, Attempt, with_attempt
from tests.integration.test_api_graders import EQ, completion

CUT = chr(0xFFFD)
"""Stands for bytes that are no character, as of one that was cut off."""
SHORTER: Any = {
    "type": "python", "name": "shorter",
    "source": "def grade(sample, item):\n"
              "    if item.get('answer') == 'x':\n        raise ValueError('no such thing')\n"
              "    return 1 / (1 + len(sample['output_text']))\n",
}  # fmt: skip
SCORE: Any = {
    "type": "score_model", "name": "score", "model": "out/judge",
    "input": [{"role": "user", "content": "Rate: {{ sample.output_text }}"}],
}  # fmt: skip


@pytest.fixture(scope="module")
def adapters(stack: InferenceStack, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return [make_adapter(tmp_path_factory.mktemp("policy"), stack.base, seed=seed) for seed in (21, 22)]


def trained_logprobs(stack: InferenceStack, adapter: Path, group: RolloutGroup) -> list[list[float]]:
    """Compute with transformers and PEFT what the adapter gives each sampled token, in nats."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(stack.base, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, adapter)
    found = []
    with torch.inference_mode():
        for sample in group.samples:
            tokens = torch.tensor([group.prompt_tokens + sample.tokens])
            logprobs = model(input_ids=tokens).logits[0].log_softmax(-1)
            start = len(group.prompt_tokens)
            found.append([float(logprobs[place - 1, tokens[0, place]]) for place in range(start, tokens.shape[1])])
    return found


def test_a_step_is_answered_by_its_own_model_and_rewarded(stack: InferenceStack, adapters: list[Path]) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(stack.base)

    async def story(one: Attempt) -> None:
        for step, adapter in enumerate(adapters, 1):
            given = await one.gathering.gather(one.wanted(adapter, step=step, lines=(3, 1, 2)))
            header, groups = read_rollouts(Path(given.path))
            assert (header.step, header.policy) == (step, adapter_digest(adapter))
            assert [(group.line, len(group.samples)) for group in groups] == [(3, GROUP), (1, GROUP), (2, GROUP)]
            for group in groups:
                _check_prompt(tokenizer, group)
                expected = trained_logprobs(stack, adapter, group)
                for sample, logprobs in zip(group.samples, expected, strict=True):
                    assert sample.logprobs == pytest.approx(logprobs, abs=1e-3)
                    assert len(sample.tokens) <= TOKENS
                    text = tokenizer.decode(sample.tokens, skip_special_tokens=True)
                    assert sample.text.rstrip(CUT) == text.rstrip(CUT)
                    ended = sample.tokens[-1] == tokenizer.eos_token_id
                    assert sample.is_truncated == (not ended)
            assert len({tuple(sample.tokens) for group in groups for sample in group.samples}) > GROUP
            _check_rewards(header, groups)
            assert await one.policies() == [header.policy]  # the one before is taken back
        assert not (Path(one.spec.adapters_folder) / adapter_digest(adapters[0])).exists()

    with_attempt(replace(stack.settings, python_graders=True), SHORTER, story)


def _check_prompt(tokenizer: Any, group: RolloutGroup) -> None:
    """The server's prompt is the row as training writes it."""
    messages = [dict(message) for message in group.item["messages"]]
    for message in messages:
        if isinstance(message["content"], list):
            message["content"] = "".join(part["text"] for part in message["content"])
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert group.prompt_tokens == tokenizer(text, add_special_tokens=False)["input_ids"]


def _check_rewards(header: RolloutHeader, groups: list[RolloutGroup]) -> None:
    """The program's own faults are rewards of 0, and are counted."""
    for group in groups:
        fails = group.item.get("answer") == "x"
        for sample in group.samples:
            reward = 0.0 if fails else 1 / (1 + len(sample.text))
            assert sample.reward == pytest.approx(reward) and sample.scores == {"shorter": sample.reward}
            assert sample.errors == (["python_grader_runtime_error"] if fails else [])
            assert ("no such thing" in sample.detail) == fails
    rewards = [sample.reward or 0.0 for group in groups for sample in group.samples]
    stats = header.stats
    assert (stats.groups, stats.samples, stats.ungraded) == (3, 9, 0)
    assert stats.reward_mean == pytest.approx(sum(rewards) / 9)
    assert stats.errors == {"python_grader_runtime_error": GROUP}
    assert stats.zero_variance_share in (pytest.approx(1 / 3), pytest.approx(2 / 3), 1.0)


def test_answers_of_a_given_form_have_the_models_own_log_probabilities(
    stack: InferenceStack, adapters: list[Path]
) -> None:
    async def story(one: Attempt) -> None:
        [group] = read_rollouts(Path((await one.gathering.gather(one.wanted(adapters[0], lines=(1,)))).path))[1]
        expected = trained_logprobs(stack, adapters[0], group)
        for sample, logprobs in zip(group.samples, expected, strict=True):
            assert sample.text.startswith('{"') and sample.logprobs == pytest.approx(logprobs, abs=1e-3)
            assert min(logprobs) < -1  # the form has forced tokens upon the model

    shape = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    form = {
        "type": "json_schema",
        "json_schema": {"name": "answer", "schema": {**shape, "additionalProperties": False}},
    }
    with_attempt(stack.settings, EQ, story, response_format=form)


def test_seeds_hold_where_prompts_are_read_in_several_steps(stack: InferenceStack) -> None:
    """The engine reads 512 tokens in a step: what it draws for a prompt that goes on must not count."""
    assert stack.replica is not None
    url, headers = stack.replica.url, {"authorization": f"Bearer {KEY}"}

    async def story() -> None:
        async with httpx2.AsyncClient(base_url=url, headers=headers, timeout=None, trust_env=False) as http:

            async def ask(number: int) -> list[int]:
                messages = [{"role": "user", "content": f"{number} " + "what is the lazy dog? " * 30}]
                asked = {"model": BASE_ID, "messages": messages, "seed": number, "max_tokens": 4}
                answered = await http.post("/v1/chat/completions", json=asked | {"return_token_ids": True})
                answered.raise_for_status()
                tokens: list[int] = answered.json()["choices"][0]["token_ids"]
                return tokens

            together = await asyncio.gather(*map(ask, range(6)))
            assert together == [await ask(number) for number in range(6)]

    asyncio.run(story())


def test_a_step_is_sampled_and_judged_once(stack: InferenceStack, adapters: list[Path]) -> None:
    """Another attempt gets what the file has; a damaged file is made again, with the same answers."""

    async def story(one: Attempt) -> None:
        wanted = one.wanted(adapters[0])
        given = await one.gathering.gather(wanted)
        path = Path(given.path)
        content = path.read_bytes()
        assert len(judge.received) == 2 * GROUP
        async with gathering(one.stores, one.serving, one.record, one.spec, one.token) as later:
            assert later is not None and await later.gather(wanted) == given
        assert (path.read_bytes(), len(judge.received)) == (content, 2 * GROUP)
        valid = await one.gathering.gather(one.wanted(adapters[0], validation=True, samples=1))
        assert (Path(valid.path).name, len(judge.received)) == ("valid-000001.jsonl", 2 * GROUP + 2)

        path.write_bytes(content[:-9])
        await one.gathering.gather(wanted)
        again, before = read_rollouts(path)[1], [msgspec.json.decode(line) for line in content.splitlines()[1:]]
        assert [[s.tokens for s in g.samples] for g in again] == [[s["tokens"] for s in g["samples"]] for g in before]
        await one.gathering.gather(one.wanted(adapters[1]))  # the same step by another model
        assert read_rollouts(path)[0].policy == adapter_digest(adapters[1])
        usage = read_rollouts(path)[0].stats.usage["out/judge"]
        assert (usage.total_tokens, len(judge.received)) == (2 * GROUP * 25, 3 * 2 * GROUP + 2)

    with Upstream() as judge:
        judge.answer = completion('{"steps": [], "result": 0.5}')
        with_attempt(replace(stack.settings, judge_endpoints=_at(judge)), SCORE, story)


def _at(judge: Upstream) -> dict[str, JudgeEndpoint]:
    return {"out": JudgeEndpoint(base_url=f"{judge.url}/v1")}


def test_a_step_waits_for_its_judge_and_in_the_end_fails(
    stack: InferenceStack, adapters: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(one: Attempt) -> None:
        monkeypatch.setattr(module, "FIRST_PAUSE_S", 0.3)
        judge.behaviour, judge.status = "status", 401
        gathered = asyncio.create_task(one.gathering.gather(one.wanted(adapters[0])))
        while len(await one.story()) < 1:
            await asyncio.sleep(0.005)
        judge.behaviour, judge.status = "whole", 200
        header, groups = read_rollouts(Path((await gathered).path))
        assert [sample.reward for group in groups for sample in group.samples] == [0.5] * (2 * GROUP)
        assert (header.stats.ungraded, header.stats.reward_mean) == (0, 0.5)
        monkeypatch.setattr(module, "FIRST_PAUSE_S", 0.001)
        judge.behaviour, judge.status = "status", 401
        with pytest.raises(TrainingFailed, match=r"None of the answers of step 2 .* 5 tries: .*'out' answered 401"):
            await one.gathering.gather(one.wanted(adapters[0], step=2))
        steps = [told.split(" could be graded")[0] for told in await one.story()]
        assert steps == ["None of the answers of step 1", "None of the answers of step 2"]

    with Upstream() as judge:
        judge.answer = completion('{"steps": [], "result": 0.5}')
        with_attempt(replace(stack.settings, judge_endpoints=_at(judge)), SCORE, story)


def test_judges_of_this_stack_are_those_that_the_project_may_use(stack: InferenceStack, adapters: list[Path]) -> None:
    async def story(one: Attempt) -> None:
        judge = one.gathering._means.judge
        assert judge is not None
        messages = [{"role": "user", "content": "what is the capital of france?"}]
        sampling, form = msgspec.convert({"max_completions_tokens": 4}, SamplingParams), score_format()
        await one.gathering.gather(one.wanted(adapters[0]))
        for model in (BASE_ID, "quick"):
            answer = await judge.ask(model, messages, sampling, form)
            assert answer.text.startswith("{") and answer.completion_tokens == 4
        hidden = ids.policy_name(one.record.id, adapter_digest(adapters[0]))
        for model in (hidden, "ft:none"):
            with pytest.raises(JudgeFailed, match="does not exist or you do not have access"):
                await judge.ask(model, messages, sampling, form)

    with_attempt(replace(stack.settings, model_aliases={"quick": BASE_ID}), EQ, story)


def test_nothing_is_left_of_a_job_that_ended(stack: InferenceStack, adapters: list[Path]) -> None:
    async def story(one: Attempt) -> None:
        await one.gathering.gather(one.wanted(adapters[0]))
        taken = await one.stores.leases.claim(one.record.id)
        assert taken is None
        await one.stores.leases.release(one.record.id, one.token)
        later = await one.stores.leases.claim(one.record.id)
        with pytest.raises(LeaseLost):  # another worker's attempt goes on with what is published
            await one.gathering.retire()
        assert await one.policies() == [adapter_digest(adapters[0])]
        await withdraw(one.stores, one.record, fence=later or "")
        assert await one.policies() == []

    with_attempt(replace(stack.settings, python_graders=True), SHORTER, story)


def test_what_this_trainer_cannot_do_fails_the_job(stack: InferenceStack, adapters: list[Path]) -> None:
    async def story(one: Attempt) -> None:
        with pytest.raises(TrainingFailed, match="Python graders cannot be run: they are turned off"):
            await one.gathering.gather(one.wanted(adapters[0]))

    with_attempt(stack.settings, SHORTER, story)
