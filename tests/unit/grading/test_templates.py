"""Templates look values up in item and sample; whatever else they try is refused before anything is graded."""

from __future__ import annotations

import time
from typing import Any

import pytest

from shared.grading.samples import sample_of
from shared.grading.templates import (
    MAX_RENDERED_CHARS,
    MAX_REQUEST_CHARS,
    Room,
    TemplateError,
    TooLong,
    UnknownVariable,
    parse,
    render,
)

TOOL = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
NAMESPACES: dict[str, Any] = {
    "item": {
        "q": "why?", "n": 3, "f": 0.5, "yes": True, "none": None, "list": ["a", {"b": "c"}], "a name": "spaced",
        "7": "seven", "dashed-name": "dash", "__class__": "only a key", "nested": "{{ item.q }}",
    },
    "sample": sample_of('{"answer": {"text": "42"}}', [TOOL]),
}  # fmt: skip


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("plain } { text", "plain } { text"),
        ("{{item.q}}", "why?"),
        ("a {{ item.q }} b {{item.n}}", "a why? b 3"),
        ("{{ item.f }} {{ item.yes }} {{ item.none }}", "0.5 true null"),
        ("{{ item.list }}", '["a",{"b":"c"}]'),
        ("{{ item.list[0] }}{{ item.list[-1].b }}{{ item.list.1.b }}", "acc"),
        ("{{ item['a name'] }} {{ item[\"a name\"] }}", "spaced spaced"),
        ("{{ item.7 }}{{ item.dashed-name }}", "sevendash"),
        ("{{ item.nested }}", "{{ item.q }}"),  # a value is no template
        ("{{ item.__class__ }}", "only a key"),
        ("{{ sample.output_text }}", '{"answer": {"text": "42"}}'),
        ("{{ sample.output_json.answer.text }}", "42"),
        ("{{ sample.output_tools[0].function.name }}", "weather"),
        ("{{ sample.choices[0].message.content }}", '{"answer": {"text": "42"}}'),
    ],
)
def test_paths_become_values(template: str, text: str) -> None:
    assert render(template, NAMESPACES) == text


@pytest.mark.parametrize(
    "template",
    [
        "{{ item.missing }}", "{{ item.list[2] }}", "{{ item.list[-3] }}", "{{ item.list.b }}", "{{ item.q.upper }}",
        "{{ item.q[0] }}", "{{ item.n.real }}", "{{ item.list.__class__ }}", "{{ item.none.x }}",
        "{{ sample.__init__ }}", "{{ item.list.append }}", "{{ item.list.999999999999999999999 }}",
        "{{ item.list.² }}",
    ],
)  # fmt: skip
def test_paths_that_lead_nowhere_are_unknown(template: str) -> None:
    with pytest.raises(UnknownVariable):
        render(template, NAMESPACES)


@pytest.mark.parametrize(
    "template",
    [
        "{{ config }}", "{{ self }}", "{{ os.environ }}", "{{ items.q }}", "{{ }}", "{{", "{{ item.q", "{{ item. }}",
        "{{ item.q() }}", "{{ item.q | upper }}", "{{ item.q|attr('__class__') }}", "{{ item.n + 1 }}",
        "{{ item['q' ~ 'x'] }}", "{{ item[item.q] }}", "{{ item.list[0:1] }}", "{{ ''.__class__.__mro__ }}",
        "{{ item.__class__.__mro__[1].__subclasses__() }}", "{{ cycler.__init__.__globals__.os.popen('id') }}",
        "{{ lipsum.__globals__ }}", "{{ namespace() }}", "{{ item.list[99999999999999] }}", "{{ [].append(1) }}",
        "{{ item if sample else item }}", "{{{ item.q }}}", "{{ item\x00.q }}",
    ],
)  # fmt: skip
def test_anything_but_a_path_is_refused(template: str) -> None:
    with pytest.raises(TemplateError):
        parse(template)


@pytest.mark.parametrize("template", ["{% for x in item.list %}{{ x }}{% endfor %}", "{% include '/etc/passwd' %}"])
def test_statements_are_text_at_most(template: str) -> None:
    try:
        assert render(template, NAMESPACES) == template
    except TemplateError as error:
        assert "does not begin with item or sample" in str(error)


def test_a_text_that_grows_too_long_is_given_up() -> None:
    namespaces = {"item": {"x": "y" * 1000}, "sample": {}}
    assert len(render("{{item.x}}" * 1000, namespaces)) == 1_000_000
    with pytest.raises(TooLong):
        render("{{item.x}}" * (MAX_RENDERED_CHARS // 1000 + 1), namespaces)


@pytest.mark.parametrize(
    "template", ["{{" * 100_000, "{{ item" + ".a" * 100_000, "{{ item" + " " * 200_000 + "x}}", "{{ item.a }}" * 20_000]
)
def test_long_templates_take_time_in_proportion(template: str) -> None:
    start = time.process_time()
    try:
        parse(template)
    except TemplateError as error:
        assert len(str(error)) < 300
    assert time.process_time() - start < 10


def test_a_sample_has_its_json_and_tools_only_where_there_are_any() -> None:
    assert sample_of("not json").keys() == {"output_text", "choices"}
    assert sample_of("1.5")["output_json"] == 1.5
    assert sample_of("[" * 100_000).keys() == {"output_text", "choices"}
    assert sample_of("", [TOOL])["output_tools"] == [TOOL]


def test_templates_of_one_request_share_its_room() -> None:
    room, namespaces = Room(), {"item": {"x": "a" * 1000}}
    for _ in range(MAX_REQUEST_CHARS // 1000):
        render("{{item.x}}", namespaces, room)
    with pytest.raises(TooLong):
        render("{{item.x}}", namespaces, room)
