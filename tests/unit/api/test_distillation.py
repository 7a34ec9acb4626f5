"""What is dropped of a teacher's answers, and why; what is learned of the rest, and what is held out."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from services.api.distillation import duplicates
from services.api.distillation.candidates import Candidate, Collection, read_candidates
from services.api.distillation.duplicates import COMPARED, SKETCH, are_alike, near_duplicates, sketch_of
from services.api.distillation.examples import Unusable, answer_in, said, training_line
from services.api.distillation.selecting import Selection, Word, word_of
from shared.schemas.distillations import DistillationEvaluation, DistillationFilter
from shared.schemas.evals import EvalError, ItemResult, OutputItem, Sample, SampleMessage

CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}


def candidate(name: str, prompt: str = "", answer: str | None = "yes", **fields: Any) -> Candidate:
    said_ = None if answer is None else {"role": "assistant", "content": answer}
    return Candidate(id=name, input=[{"role": "user", "content": prompt or name}], answer=said_, **fields)


def test_near_duplicates_are_those_that_comparing_all_with_all_finds() -> None:
    """400 texts of a few words each, many of them changed copies; thresholds from half to all."""
    draw = random.Random(7)
    words = [f"w{n}" for n in range(60)]
    texts = [[draw.choice(words) for _ in range(draw.randint(1, 30))] for _ in range(120)]
    for _ in range(280):
        copy = [*draw.choice(texts)]
        for _ in range(draw.randint(0, 3)):
            copy[draw.randrange(len(copy))] = draw.choice(words)
        texts.append(copy)
    sketches = [sketch_of(" ".join(text)) for text in texts]
    sets = [frozenset(sketch) for sketch in sketches]
    for threshold in (0.5, 0.7, 0.9, 1.0):
        expected: dict[int, int] = {}
        for number, own in enumerate(sets):
            for other in range(number):
                alike = len(own & sets[other]) / len(own | sets[other])
                if other not in expected and alike >= threshold:
                    expected[number] = other
                    break
        assert len(expected) > 30
        assert near_duplicates(sketches, threshold) == expected


def test_a_template_makes_no_row_be_compared_with_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """2,500 rows with the same 92 words around 30 of their own; and copies of them, which are found."""
    draw = random.Random(7)
    frame = [f"frame{n}" for n in range(92)]
    texts = [[*frame[:60], *(f"w{draw.randrange(20_000)}" for _ in range(30)), *frame[60:]] for _ in range(2_500)]
    texts += [[*text[:-1], "changed"] for text in texts[2_400:]]
    compared: Counter[str] = Counter()

    def counted(own: frozenset[int], other: Any, threshold: float) -> bool:
        compared["all"] += 1
        return are_alike(own, other, threshold)

    monkeypatch.setattr(duplicates, "are_alike", counted)
    found = near_duplicates([sketch_of(" ".join(text)) for text in texts], 0.8)
    assert found == {2_500 + number: 2_400 + number for number in range(100)}
    assert compared["all"] <= 2_600 * COMPARED


def test_looking_for_near_duplicates_stops_when_it_is_told_to(tmp_path: Path) -> None:
    same = [sketch_of("a b c d")] * 3
    stop = Event()
    assert near_duplicates(same, 0.9, stop=stop) == {1: 0, 2: 0}
    stop.set()
    assert near_duplicates(same, 0.9, stop=stop) == {}
    collection = Collection(tmp_path / "x.jsonl", DistillationFilter(near_duplicates=0.9))
    collection.add([candidate("a")])
    collection.stop()
    collection.add([candidate("b")])
    collection.finish()
    collection.close()
    assert [*tmp_path.iterdir()] == [], "half of what was found is not taken for all"


def test_how_alike_texts_are_does_not_hang_on_case_and_punctuation() -> None:
    assert sketch_of("What is 3 plus 4?") == sketch_of("what IS 3, plus 4")
    assert sketch_of("What is 3 plus 4?") != sketch_of("What is 3 plus 5?")
    assert len(sketch_of("…")) == 0 and len(sketch_of("yes")) == 1
    assert near_duplicates([sketch_of(""), sketch_of("")], 0.5) == {}, "a text without words is like nothing"
    assert len(sketch_of(" ".join(map(str, range(5000))))) == SKETCH


def test_only_the_answer_is_learned() -> None:
    asked: list[dict[str, Any]] = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Hi"}], "name": None},
        {"role": "assistant", "content": "Hello", "annotations": [], "reasoning_content": "…"},
        {"role": "user", "content": "Bye"},
    ]
    line = json.loads(training_line(asked, {"role": "assistant", "content": "See you"}, None))
    assert line == {
        "messages": [
            asked[0],
            {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
            {"role": "assistant", "content": "Hello", "weight": 0},
            asked[3],
            {"role": "assistant", "content": "See you"},
        ]
    }
    assert "Be brief" not in said(asked, None) and "Hi" in said(asked, None)
    tools = [{"type": "function", "function": {"name": "f"}}]
    called = json.loads(training_line(asked[:2], {"role": "assistant", "tool_calls": [CALL]}, tools))
    assert called["tools"] == tools and called["messages"][-1]["tool_calls"] == [CALL]


@pytest.mark.parametrize(
    ("choice", "reason"),
    [
        ({"message": {"content": "cut o"}, "finish_reason": "length"}, "truncated"),
        ({"message": {"content": ""}, "finish_reason": "content_filter"}, "refused"),
        ({"message": {"content": "No.", "refusal": "I won't."}, "finish_reason": "stop"}, "refused"),
        ({"message": {"content": None, "refusal": "I won't."}, "finish_reason": "stop"}, "refused"),
        ({"message": {"content": "  \n"}, "finish_reason": "stop"}, "empty"),
        ({"message": {"content": None}}, "empty"),
        ({"message": {"content": 7}}, "empty"),
        ({"message": "odd"}, "unreadable"),
    ],
)
def test_answers_that_nothing_is_learned_from(choice: dict[str, Any], reason: str) -> None:
    with pytest.raises(Unusable) as refused:
        answer_in(json.dumps({"choices": [choice]}).encode())
    assert refused.value.reason == reason


@pytest.mark.parametrize(
    "message",
    [
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:"}}]},
        {"role": "narrator", "content": "x"},
        {"role": "user"},
        {"role": "user", "content": "x", "unheard_of": 1},
    ],
)
def test_prompts_that_training_cannot_hold(message: dict[str, Any]) -> None:
    with pytest.raises(Unusable, match="not_trainable"):
        training_line([message], {"role": "assistant", "content": "y"}, None)


def test_collecting_drops_what_was_there_before(tmp_path: Path) -> None:
    long = "Please tell me in a few words what the weather is like in the town of "
    given = [
        candidate("a", "one"),
        candidate("b", "one"),
        candidate("c", "one", "no"),
        Candidate(id="d", dropped="truncated"),
        candidate("e", long + "Ulm today"),
        candidate("f", long + "Bonn today"),
    ]

    def collected(name: str, **wanted: Any) -> list[tuple[str, str, str]]:
        collection = Collection(tmp_path / name / "x.jsonl", DistillationFilter(**wanted))
        collection.add(given[:3])
        collection.add(given[3:])
        collection.finish()
        collection.close()
        assert [path.name for path in (tmp_path / name).iterdir()] == ["x.jsonl"]
        return [(one.id, one.dropped, one.like) for one in read_candidates(tmp_path / name / "x.jsonl")]

    rest = [("c", "", ""), ("d", "truncated", ""), ("e", "", "")]
    assert collected("plain") == [("a", "", ""), ("b", "duplicate", "a"), *rest, ("f", "", "")]
    assert collected("kept", duplicates=True) == [("a", "", ""), ("b", "", ""), *rest, ("f", "", "")]
    near = ("f", "near_duplicate", "e")
    assert collected("near", near_duplicates=0.6) == [("a", "", ""), ("b", "duplicate", "a"), *rest, near]
    assert collected("plain", near_duplicates=0.6)[-1] == ("f", "", ""), "what was collected first counts"
    given = [candidate("t", "one", tools=[{"type": "function", "function": {"name": name}}]) for name in "fgf"]
    assert [dropped for _, dropped, _ in collected("tools")] == ["", "", "duplicate"]


def select(
    tmp_path: Path, rows: list[tuple[Candidate, Word | None]], *, held_out: float = 0.2, **wanted: Any
) -> tuple[Any, list[Any], list[Any], list[Any]]:
    """Return counts, training rows, held-out rows and the manifest."""
    evaluation = DistillationEvaluation(held_out=held_out)
    selection = Selection(tmp_path / "draft", DistillationFilter(**wanted), evaluation, 0)
    try:
        for one, word in rows:
            selection.add(one, word)
        counts = selection.split()
        parts = (selection.training(), selection.held_out(), selection.manifest({"object": "head"}))
        return (counts, *([json.loads(line) for line in part] for part in parts))  # type: ignore[return-value]
    finally:
        selection.close()


def test_every_row_is_trained_on_held_out_or_dropped_for_a_reason(tmp_path: Path) -> None:
    def word(score: float, **fields: Any) -> Word:
        return Word(scores={"good": score}, errors=frozenset(), **fields)

    rows: list[tuple[Candidate, Word | None]] = [(candidate(f"r{n}", model="t"), word(0.9)) for n in range(20)]
    rows += [
        (candidate("low"), word(0.4)),
        (candidate("unsaid"), Word(scores={}, errors=frozenset({"good"}))),
        (candidate("unread"), None),
        (Candidate(id="same", dropped="duplicate", like="r0"), None),
        (candidate("tools", answer="yes", tools=[{"type": "function", "function": {"name": "f"}}]), word(1.0)),
        (candidate("more"), word(1.0)),
    ]
    counts, training, held_out, manifest = select(tmp_path, rows, minimum_scores={"good": 0.5}, max_rows=21)
    assert (counts.found, counts.training, counts.held_out) == (26, 17, 4)
    assert counts.dropped == {"duplicate": 1, "low_score": 1, "not_graded": 2, "over_max_rows": 1}
    assert manifest[0] == {"object": "head"} and [one["id"] for one in manifest[1:]] == [one.id for one, _ in rows]
    fates = {one["id"]: one for one in manifest[1:]}
    assert fates["low"] == {"id": "low", "outcome": "dropped", "reason": "low_score", "scores": {"good": 0.4}}
    assert fates["same"]["like"] == "r0" and fates["r0"]["scores"] == {"good": 0.9}
    assert fates["tools"]["outcome"] == "training", "an eval's run has no tools for a row"
    prompts = {row["messages"][0]["content"] for row in training}
    assert prompts.isdisjoint(row["item"]["input"][0]["content"] for row in held_out)
    assert held_out[0]["sample"] == {"output_text": "yes", "model": "t"} and held_out[0]["item"]["output"] == "yes"
    again = select(tmp_path, rows, minimum_scores={"good": 0.5}, max_rows=21)
    assert again == (counts, training, held_out, manifest)


def test_a_prompt_is_on_one_side_whole(tmp_path: Path) -> None:
    rows = [(candidate(f"r{n}", f"prompt {n % 7}", f"answer {n}"), None) for n in range(70)]
    _, training, held_out, _ = select(tmp_path, [*rows], held_out=0.3)
    sides = [
        {row["messages"][0]["content"] for row in training},
        {row["item"]["input"][0]["content"] for row in held_out},
    ]
    assert len(sides[1]) == 2 and sides[0].isdisjoint(sides[1]) and len(held_out) == 20


def test_a_prompt_gets_the_answer_that_a_run_has_brought(tmp_path: Path) -> None:
    def item(**sample: Any) -> OutputItem:
        result = ItemResult(name="good", type="string_check", score=1.0, passed=True)
        return OutputItem(
            id="i", run_id="r", eval_id="e", created_at=0, status="pass", datasource_item_id=0, datasource_item={},
            results=[result], sample=Sample(**sample),
        )  # fmt: skip

    whole = item(output=[SampleMessage(role="assistant", content="42")], finish_reason="stop", model="teacher")
    assert word_of(whole, is_answered=False).answer == {"role": "assistant", "content": "42"}
    cut = item(output=[SampleMessage(role="assistant", content="4")], finish_reason="length")
    gone = item(error=EvalError(code="x"))
    words = [word_of(one, is_answered=False) for one in (whole, cut, gone)]
    rows = [(candidate(str(n), answer=None, row={"key": n}), word) for n, word in enumerate(words)]
    counts, _, held_out, _ = select(tmp_path, [*rows])
    assert counts.dropped == {"truncated": 1, "not_answered": 1}
    assert held_out[0]["item"]["row"] == {"key": 0} and held_out[0]["item"]["model"] == "teacher"
