"""A reward model's folder, and what scores conversations from it: in this process, and as the process for it does."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

from services.trainer.data.pairs import Pair
from services.trainer.failures import TrainingFailed
from services.trainer.protocol import encode_line
from services.trainer.scoring_protocol import Batch, NotScored, Scored, answer_decoder
from services.trainer.training.model import SCORE_NAME, build_model
from services.trainer.training.scoring import Scorer
from services.trainer.training.scoring_child import Scorers
from shared.adapters import CONFIG_NAME, WEIGHTS_NAME, adapter_digest, verify_adapter
from shared.chat_data import Message
from shared.errors import AdapterRejected, InvalidTrainingData
from tests.unit.trainer.run import Run
from tests.unit.trainer.test_trainer_dpo import dpo_spec
from tests.unit.trainer.test_trainer_loop import train as train_supervised
from tests.unit.trainer.test_trainer_orpo import train
from tests.unit.trainer.tiny import make_spec, preference_rows, write_rows


@pytest.fixture(scope="module")
def judge(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Run[Pair]:
    folder = tmp_path_factory.mktemp("judge")
    files = {
        "training_path": str(write_rows(folder / "tasteful-train.jsonl", tasteful_rows(24))),
        "validation_path": str(write_rows(folder / "tasteful-valid.jsonl", tasteful_rows(6))),
    }
    return train(dpo_spec(tiny_base, folder, method="reward", learning_rate_multiplier=50.0, **files), folder)


def tasteful_rows(count: int) -> list[dict[str, Any]]:
    """Pairs of which one answer is the better one whatever was asked."""
    better, worse = ([{"role": "assistant", "content": content}] for content in ("fruit", "animal"))
    return [{**row, "preferred_output": better, "non_preferred_output": worse} for row in preference_rows(count)]


def test_reward_model_learns_which_answer_is_better(judge: Run[Pair]) -> None:
    last = judge.steps[-1]
    assert (last.full_valid_loss or 9) < 0.3
    assert last.full_valid_rewards_accuracy == last.full_valid_mean_token_accuracy == 1.0
    assert (last.full_valid_rewards_margin or 0) > 1.0


def conversations() -> list[list[Message]]:
    rows = tasteful_rows(6)
    asked = [row["input"]["messages"] for row in rows]
    better = [[*before, *row["preferred_output"]] for before, row in zip(asked, rows, strict=True)]
    worse = [[*before, *row["non_preferred_output"]] for before, row in zip(asked, rows, strict=True)]
    return msgspec.convert([*better, *worse], list[list[Message]])


def test_scorer_says_what_the_trained_model_said(judge: Run[Pair], tiny_base: Path) -> None:
    scorer = Scorer.load(tiny_base, Path(judge.exports[-1].folder), max_length=128)
    scores = torch.tensor(scorer.scores(conversations()))
    better, worse = scores.chunk(2)
    held_out = judge.session.evaluate(judge.loop.data.valid).rewards  # the same six questions
    assert held_out is not None
    assert better.mean().item() == pytest.approx(held_out.chosen, abs=1e-4)
    assert worse.mean().item() == pytest.approx(held_out.rejected, abs=1e-4)
    assert scorer.scores([]) == []
    with pytest.raises(InvalidTrainingData, match="line 2"):
        scorer.scores([conversations()[0], [Message(role="user", content="dog?")]])


def test_folder_is_peft_s_own_form(judge: Run[Pair], tiny_base: Path) -> None:
    """transformers and peft, which know nothing of us, load it and give the same scores."""
    folder = Path(judge.exports[-1].folder)
    base = AutoModelForSequenceClassification.from_pretrained(tiny_base, num_labels=1, dtype=torch.float32)
    model: Any = PeftModel.from_pretrained(base, folder).eval()
    scorer = Scorer.load(tiny_base, folder, max_length=128)
    found = scorer.scores(conversations())
    for pair, score in zip(judge.loop.data.valid, found[:6], strict=True):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([pair.chosen.tokens.tolist()])).logits
        assert logits.item() == pytest.approx(score, abs=1e-4)


def test_folder_is_refused_as_a_model_that_writes(judge: Run[Pair], tiny_base: Path) -> None:
    folder = Path(judge.exports[-1].folder)
    config = json.loads((folder / CONFIG_NAME).read_text())
    assert (config["task_type"], config["modules_to_save"]) == ("SEQ_CLS", ["score"])
    with pytest.raises(AdapterRejected, match="modules_to_save"):
        verify_adapter(folder, base_folder=tiny_base, base_id="tiny", max_rank=64)
    assert "AutoModelForSequenceClassification" in (folder / "README.md").read_text()


def test_adapter_of_a_model_that_writes_is_no_reward_model(tiny_base: Path, tmp_path: Path) -> None:
    exported = train_supervised(make_spec(tiny_base, tmp_path, n_epochs=1), tmp_path).exports[-1]
    with pytest.raises(TrainingFailed, match="is no reward model"):
        Scorer.load(tiny_base, Path(exported.folder))
    with pytest.raises(TrainingFailed, match="cannot be read"):
        Scorer.load(tiny_base, tmp_path / "nowhere")


def test_reward_model_may_start_at_a_model_that_writes(tiny_base: Path, tmp_path: Path) -> None:
    parent = train_supervised(make_spec(tiny_base, tmp_path / "p"), tmp_path / "p").exports[-1]
    spec = dpo_spec(tiny_base, tmp_path, method="reward", parent_folder=parent.folder, parent_sha256=parent.sha256)
    [one, other] = [build_model(spec), build_model(dpo_spec(tiny_base, tmp_path, method="reward"))]
    assert one.score is not None and other.score is not None
    torch.testing.assert_close(one.score, other.score)
    assert SCORE_NAME == "base_model.model.score.weight"


# --- the process


def batch(base: Path, folder: Path, found: list[list[Message]], **changes: Any) -> Batch:
    fields = {
        "base_folder": str(base), "adapter_folder": str(folder), "sha256": adapter_digest(folder), "max_length": 128,
    }  # fmt: skip
    return Batch(**{**fields, "conversations": found, **changes})


def test_one_bad_conversation_takes_no_score_from_the_others(judge: Run[Pair], tiny_base: Path) -> None:
    folder = Path(judge.exports[-1].folder)
    expected = Scorer.load(tiny_base, folder, max_length=128).scores(conversations()[:2])
    long = [Message(role="user", content="what " * 300), conversations()[0][-1]]
    found = Scorers().answer(batch(tiny_base, folder, [conversations()[0], long, conversations()[1]]))
    assert isinstance(found, Scored)
    assert [found.scores[0], found.scores[2]] == pytest.approx(expected, abs=1e-5) and found.scores[1] is None
    assert found.problems[::2] == ["", ""] and "more than the 128 of this server" in found.problems[1]


def test_last_models_stay_in_memory(judge: Run[Pair], tiny_base: Path) -> None:
    folder = Path(judge.exports[-1].folder)
    scorers = Scorers(most=2)
    for length in (126, 127, 126, 128):
        scorers.answer(batch(tiny_base, folder, conversations()[:1], max_length=length))
    assert [length for *_, length in scorers._held] == [126, 128]


def test_model_that_cannot_be_read_is_told(judge: Run[Pair], tiny_base: Path, tmp_path: Path) -> None:
    folder = Path(judge.exports[-1].folder)
    for changes, text in (
        ({"sha256": "0" * 64}, "damaged"),
        ({"adapter_folder": str(tmp_path / "gone")}, "not there any more"),
        ({"base_folder": str(tmp_path / "gone")}, "not on the host of this trainer"),
    ):
        found = Scorers().answer(batch(tiny_base, folder, conversations()[:1], **changes))
        assert isinstance(found, NotScored) and text in found.reason


def test_score_that_is_no_number_arrives_as_none(judge: Run[Pair], tiny_base: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(judge.exports[-1].folder, tmp_path / "diverged")
    weights = load_file(folder / WEIGHTS_NAME)
    save_file({**weights, SCORE_NAME: torch.full_like(weights[SCORE_NAME], math.inf)}, folder / WEIGHTS_NAME)
    found = Scorers().answer(batch(tiny_base, folder, conversations()[:2]))
    answer = answer_decoder.decode(encode_line(found))
    assert isinstance(answer, Scored) and answer.scores == [None, None] and answer.problems == ["", ""]
