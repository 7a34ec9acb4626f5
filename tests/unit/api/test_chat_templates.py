"""Chat templates that are refused when they are set, each with its reason, and such that pass."""

from __future__ import annotations

import asyncio

import pytest

from services.api.model_settings import template_check
from services.api.model_settings.template_check import TemplateCheck, Trial
from services.api.model_settings.template_child import fault_of

PLAIN = "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
PARTS = "{% for message in messages %}{% for part in message.content %}{{ part.text }}{% endfor %}{% endfor %}"
TOOLS = "{% if tools %}{{ tools | tojson(indent=2) }}{% endif %}{{ strftime_now('%Y') }}" + PLAIN
MARKED = "{% generation %}{{ messages[-1].content }}{% endgeneration %}"
BREAKS = "{% for m in messages %}{% if loop.index > 9 %}{% break %}{% endif %}{{ m.content }}{% endfor %}"
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + PLAIN


@pytest.mark.parametrize("with_system", [False, True])
@pytest.mark.parametrize("template", [PLAIN, PARTS, TOOLS, MARKED, BREAKS])
def test_templates_as_models_have_them_pass(template: str, with_system: bool) -> None:
    assert fault_of(Trial(template=template, with_system=with_system)) is None


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{% for m in messages %}\n{{ m.content }", "line 2: unexpected '}'"),
        ("{% nonsense %}", "line 1: Encountered unknown tag 'nonsense'"),
        ("hello", "leaves out the last message"),
        ("{{ messages[0].content }}", "leaves out the last message"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{% include 'secrets' %}", "no loader"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
        ("{{ (" * 20_000, "recursion"),
    ],
)
def test_what_is_wrong_is_said(template: str, words: str) -> None:
    assert words in (fault_of(Trial(template=template, with_system=False)) or "")


def test_a_reason_that_is_no_text_is_said_all_the_same() -> None:
    fault = asyncio.run(TemplateCheck().fault("{{ raise_exception('half: \\ud83d') }}", with_system=False))
    assert fault == "it does not write a conversation of user, assistant, user: half: ?"


def test_a_process_that_fails_is_the_templates_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_check, "_MODULE", "services.api.model_settings.no_such_module")
    assert asyncio.run(TemplateCheck().fault(PLAIN, with_system=False)) == "it breaks the process that tries it out"


def test_a_system_prompt_needs_a_template_that_takes_it() -> None:
    assert fault_of(Trial(template=NO_SYSTEM, with_system=False)) is None
    fault = fault_of(Trial(template=NO_SYSTEM, with_system=True))
    assert fault == "it does not write a conversation of system, user, assistant, user: System role not supported"


@pytest.mark.parametrize(
    "template",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{{ 'a' * 2000000000 }}",
        "{% for i in range(99999) %}{% for j in range(99999) %}{{ 'aaaaaaaa' * i }}{% endfor %}{% endfor %}",
    ],
)
def test_what_takes_too_long_or_too_much_ends(template: str) -> None:
    fault = asyncio.run(TemplateCheck().fault(template, with_system=False))
    assert fault is not None and "memory" in fault
