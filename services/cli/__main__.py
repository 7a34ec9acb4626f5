"""The `selftune` command. Modules that take long to import are imported by the command that needs them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from shared.errors import SelftuneError
from shared.settings import ENV_PREFIX, Settings, describe

app = typer.Typer(
    name="selftune", no_args_is_help=True, add_completion=False, pretty_exceptions_show_locals=False,
    help="The OpenAI fine-tuning platform on your own hardware.",
)  # fmt: skip


@app.callback()
def selftune() -> None:
    """Keep `up` a command of its own while it is the only one."""


def with_settings(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command one option for every setting; it receives those that were given, by name."""

    def wrapped(**given: Any) -> None:
        command(**given)

    parameters = [
        inspect.Parameter("config", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=_CONFIG),
        *(_option(*setting) for setting in describe() if setting[0] not in _SECRET),
    ]
    wrapped.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    wrapped.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    wrapped.__doc__ = command.__doc__
    return wrapped


# Arguments are visible to every user of the machine (ps); a secret comes from the environment or the file.
_SECRET = frozenset({"internal_key"})

_CONFIG = Annotated[
    Path | None,
    typer.Option(
        envvar=f"{ENV_PREFIX}CONFIG", help="Settings file (TOML); else DATA_DIR/selftune.toml if it is there."
    ),
]


def _option(name: str, description: str, default: object) -> inspect.Parameter:
    kind = type(default).__name__.replace("str", "text")
    option = typer.Option(
        envvar=f"{ENV_PREFIX}{name.upper()}", help=description, metavar=f"<{kind}>", show_default=str(default) or False
    )
    # Text, also for numbers: Settings converts and checks, so that file, environment and option fail alike.
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, annotation=Annotated[str | None, option], default=None
    )


@app.command("up")
@with_settings
def up(config: Path | None = None, **given: str | None) -> None:
    """Run the whole stack in the foreground until Ctrl-C: database, API, trainer and inference server.

    Every option can also be a SELFTUNE_… variable or a line in the settings file; the command line is strongest.
    """
    from services.cli.stack import run

    try:
        settings = Settings.load(given, config=config)
        code = run(settings)
    except SelftuneError as error:
        typer.echo(f"selftune: {error}", err=True)
        code = 2
    raise typer.Exit(code)


def main() -> None:
    app()


if __name__ == "__main__":
    main()
