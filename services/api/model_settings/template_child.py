"""The process that tries a chat template out: a Trial on its standard input, a Verdict on its standard output.

It renders as the inference server does, with the tags, filters and functions that transformers has, and is ended by the
kernel when that takes too long.
"""

from __future__ import annotations

import json
import math
import resource
import sys
import time
from datetime import datetime
from typing import Any

import msgspec
from jinja2 import TemplateError, TemplateSyntaxError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment

from services.api.model_settings.template_check import Trial, Verdict
from shared.process import die_with_parent

_MEMORY_BYTES = 512 << 20
_RENDERING_S = 1
"""Processor time, rounded up to the next whole second of the process."""
_SAID = "selftune-says-hello"
_LONGEST_MESSAGE = 300
_TOO_LARGE = "it takes more memory than a template may"


class _Generation(Extension):
    """`{% generation %}`, which marks what an assistant wrote and changes nothing."""

    tags = {"generation"}  # noqa: RUF012 - as in the class that it extends

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_written"), [], [], body).set_lineno(line)

    def _written(self, caller: Macro) -> str:
        return str(caller())


def fault_of(trial: Trial) -> str | None:
    """Say what is wrong with a template, None if the last message of a short conversation is in what it writes."""
    try:
        template = _environment().from_string(trial.template)
    except TemplateSyntaxError as error:
        return f"line {error.lineno}: {_short(error)}"
    except MemoryError:
        return _TOO_LARGE
    except (TemplateError, RecursionError, SyntaxError, ValueError) as error:
        return f"it is no Jinja template: {_short(error)}"
    # Templates for several kinds of content want a message's text as a list of parts.
    faults = [_rendering_fault(template, _conversation(trial, as_parts=as_parts)) for as_parts in (False, True)]
    return faults[0] if all(faults) else None


def _conversation(trial: Trial, *, as_parts: bool) -> list[dict[str, Any]]:
    said = [("user", "Good day."), ("assistant", "Good day, too."), ("user", _SAID)]
    if trial.with_system:
        said = [("system", "Be brief."), *said]
    return [{"role": role, "content": [{"type": "text", "text": text}] if as_parts else text} for role, text in said]


def _rendering_fault(template: Any, messages: list[dict[str, Any]]) -> str | None:
    roles = ", ".join(message["role"] for message in messages)
    try:
        text = template.render(
            messages=messages, add_generation_prompt=True, tools=None, documents=None, bos_token="", eos_token=""
        )
    except MemoryError:
        return _TOO_LARGE
    except Exception as error:  # noqa: BLE001 - whatever the template's expressions raise
        return f"it does not write a conversation of {roles}: {_short(error)}"
    return None if _SAID in text else f"it leaves out the last message of a conversation of {roles}"


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _tojson(value: Any, **options: Any) -> str:
    return json.dumps(value, **{"ensure_ascii": False, **options})


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)  # noqa: DTZ005 - as transformers has it: the server's own time


def _short(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    # A template may raise half a character, which no JSON can hold.
    return text[:_LONGEST_MESSAGE].rstrip(".").encode("utf-8", "replace").decode()


def _bound() -> None:
    """Limit what this process may use from now on; beyond its time the kernel kills it."""
    _lower(resource.RLIMIT_AS, _MEMORY_BYTES)
    _lower(resource.RLIMIT_CPU, math.ceil(time.process_time()) + _RENDERING_S)
    _lower(resource.RLIMIT_CORE, 0)


def _lower(kind: int, limit: int) -> None:
    _, most = resource.getrlimit(kind)
    limit = limit if most == resource.RLIM_INFINITY else min(limit, most)
    resource.setrlimit(kind, (limit, limit))


def main() -> None:
    die_with_parent()
    trial = msgspec.json.decode(sys.stdin.buffer.read(), type=Trial)
    _bound()
    sys.stdout.buffer.write(msgspec.json.encode(Verdict(fault=fault_of(trial))))


if __name__ == "__main__":
    main()
