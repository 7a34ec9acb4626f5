"""The `selftune` command. Modules that take long to import are imported by the command that needs them."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import quote

import typer

from shared.errors import InvalidRequest, SelftuneError
from shared.settings import ENV_PREFIX, Settings, describe

app = typer.Typer(
    name="selftune", no_args_is_help=True, add_completion=False, pretty_exceptions_show_locals=False,
    help="The OpenAI fine-tuning platform on your own hardware.",
)  # fmt: skip


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
_SECRET = frozenset({"internal_key", "key_secret"})

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


_HERE = "http://127.0.0.1:8000/v1"
_MARKS = {"ok": " ", "warning": "!", "failed": "x"}


@app.command("doctor")
@with_settings
def doctor(config: Path | None = None, **given: str | None) -> None:
    """Show what this machine has, what is set and where, what would be chosen and why, and what is in the way.

    Ends with status 1 when something would keep the stack from running. Takes the options of `up`.
    """
    from services.cli.doctor import examine

    with _told_errors():
        settings = Settings.load(given, config=config)
        typed = {name: value for name, value in given.items() if value != os.environ.get(ENV_PREFIX + name.upper())}
        sources = Settings.sources(typed, config=config)  # options are filled from variables, too
        failed = 0
        for section, lines in examine(settings, sources):
            typer.echo(f"\n{section}")
            for line in lines:
                failed += line.level == "failed"
                typer.echo(f" {_MARKS[line.level]} {line.what:<18} {line.detail}")
    raise typer.Exit(1 if failed else 0)


_BASE_URL = typer.Option(envvar="OPENAI_BASE_URL", help="Base URL, with its /v1.")
_API_KEY = typer.Option(envvar="OPENAI_API_KEY", help="Key; rather in the environment, where other users see less.")


@app.command("export-openai")
def export_openai(
    folder: Annotated[Path, typer.Argument(help="Folder to write to; made if it is not there.")],
    base_url: Annotated[str, _BASE_URL] = "https://api.openai.com/v1",
    api_key: Annotated[str, _API_KEY] = "",
) -> None:
    """Fetch fine-tuning files and jobs from OpenAI, or a server like it, into a folder that import-openai reads."""
    from services.cli.export_openai import export
    from services.cli.openai_api import OpenAIApi

    with _told_errors(), OpenAIApi(base_url, api_key) as api:
        export(folder, api, typer.echo)


@app.command("import-openai")
def import_openai(
    export: Annotated[Path, typer.Argument(help="Folder with files.json, files/ and jobs.json.")],
    base_url: Annotated[str, _BASE_URL] = _HERE,
    api_key: Annotated[str, _API_KEY] = "",
    model: Annotated[str | None, typer.Option(help="Train on this model instead of those that the jobs name.")] = None,
    train: Annotated[bool, typer.Option("--train", help="Start the jobs, too.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be done, and do nothing.")] = False,
) -> None:
    """Bring files and jobs from OpenAI to this server, and print what they are called here.

    Running it again goes on where it was, and shows the new models' names once they are trained.
    """
    from services.cli.import_openai import Importer, show
    from services.cli.openai_api import OpenAIApi

    with _told_errors(), OpenAIApi(base_url, api_key) as api:
        importer = Importer(export, api, train=train, dry_run=dry_run, model=model)
        try:
            importer.run()
        finally:
            show(importer, typer.echo)


@app.command("export")
def export(
    model: Annotated[str, typer.Argument(help="A fine-tuned model's name, or the folder of an adapter.")],
    to: Annotated[
        Path | None, typer.Option(help="Folder to write; with --gguf alone the file, which ends in .gguf.")
    ] = None,
    merge: Annotated[bool, typer.Option("--merge", help="A whole model, the adapter merged into its base.")] = False,
    gguf: Annotated[
        Literal["f32", "f16", "bf16", "q8_0"] | None,
        typer.Option(help="A GGUF file for llama.cpp and its kin, with weights of this type; beside --merge, too."),
    ] = None,
    dtype: Annotated[
        Literal["float32", "float16", "bfloat16"] | None,
        typer.Option(help="Type of the merged weights; else that of the base."),
    ] = None,
    oci: Annotated[
        Path | None, typer.Option(help="Instead of --to: the adapter as an OCI image layout in this .tar file.")
    ] = None,
    base: Annotated[Path | None, typer.Option(help="Folder of the base, when it is not this server's.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier export, or a GGUF file.")] = False,
    data_dir: Annotated[Path | None, typer.Option(envvar=f"{ENV_PREFIX}DATA_DIR", help="The server's folder.")] = None,
    config: _CONFIG = None,
) -> None:
    """Take a fine-tuned model home: its adapter, a whole model for transformers and vLLM, a GGUF file, an OCI archive.

    A model's name is looked up in the server's database, so the stack has to run; a folder needs no server.
    """
    from services.cli.export_model import become_exporter

    with _told_errors():
        settings = Settings.load({"data_dir": data_dir and str(data_dir)}, config=config)
        become_exporter(
            settings, model, _one_place(to, oci), flags={"--merge": merge, "--force": force, "--oci": oci is not None},
            options={"--gguf": gguf, "--dtype": dtype, "--base": base},
        )  # fmt: skip


_DATA_DIR = typer.Option(envvar=f"{ENV_PREFIX}DATA_DIR", help="The server's folder.")


@app.command("backup")
def backup(
    dest: Annotated[Path, typer.Argument(help="Folder to write, empty or not there; with --verify, one to check.")],
    verify: Annotated[bool, typer.Option("--verify", help="Read an earlier backup, every byte, instead.")] = False,
    link: Annotated[
        bool, typer.Option("--link", help="On the same disk: link what never changes instead of copying it.")
    ] = False,
    data_dir: Annotated[Path | None, _DATA_DIR] = None,
    config: _CONFIG = None,
) -> None:
    """Copy everything that is kept, while the stack runs: records, files, checkpoints, models, keys."""
    from services.cli import backup as backups

    with _told_errors():
        if verify:
            manifest = backups.verify(dest)
            typer.echo(f"{dest}: whole, {manifest.records} records and {len(manifest.files) - 1} files")
        else:
            settings = Settings.load({"data_dir": data_dir and str(data_dir)}, config=config)
            backups.back_up(settings, dest, typer.echo, link=link)


@app.command("restore")
def restore(
    source: Annotated[Path, typer.Argument(help="Folder that `backup` has written.")],
    data_dir: Annotated[Path | None, _DATA_DIR] = None,
    config: _CONFIG = None,
) -> None:
    """Make a data folder and its database from a backup; both are empty before, or not there."""
    from services.cli import restore as restoring
    from services.cli.backup import DATA

    with _told_errors():
        kept = source / DATA / "selftune.toml"
        config = config or (kept if kept.is_file() else None)
        settings = Settings.load({"data_dir": data_dir and str(data_dir)}, config=config)
        restoring.restore(settings, source, typer.echo)


@app.command("rebuild")
def rebuild(data_dir: Annotated[Path | None, _DATA_DIR] = None, config: _CONFIG = None) -> None:
    """Make a lost database again from the data folder, or its bucket, with the stack stopped; tell what was found."""
    from services.cli import rebuild as rebuilding

    with _told_errors():
        settings = Settings.load({"data_dir": data_dir and str(data_dir)}, config=config)
        rebuilding.rebuild(settings, typer.echo)


@app.command("distill")
def distill(
    student: Annotated[str, typer.Option(help="Model that training starts from.")] = "",
    graders: Annotated[Path | None, typer.Option(help="JSON file with the graders of the eval, a list.")] = None,
    prompts: Annotated[Path | None, typer.Option(help='Prompts for a teacher, one {"item": …} a line.')] = None,
    teacher: Annotated[str | None, typer.Option(help="Who answers them: a model, or endpoint/model outside.")] = None,
    ask: Annotated[str | None, typer.Option(help="What is asked, such as '{{ item.question }}'.")] = None,
    model: Annotated[str | None, typer.Option(help="Stored completions of this model alone.")] = None,
    metadata: Annotated[list[str] | None, typer.Option(help="Stored completions with name=value alone.")] = None,
    minimum_score: Annotated[list[str] | None, typer.Option(help="Drop answers below: grader=score.")] = None,
    near_duplicates: Annotated[float | None, typer.Option(help="Drop rows so much alike, 0.5 to 1.")] = None,
    max_rows: Annotated[int | None, typer.Option(help="Most rows, newest first.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Most tokens of an answer that is asked for.")] = None,
    held_out: Annotated[float, typer.Option(help="Share of the rows that the student is compared on.")] = 0.1,
    suffix: Annotated[str | None, typer.Option(help="A name of yours in the model's name.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Epochs of training.")] = None,
    name: Annotated[str | None, typer.Option(help="A name of yours.")] = None,
    follow: Annotated[str | None, typer.Option(help="Follow this distillation instead of beginning one.")] = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Say what it is at until it ends.")] = True,
    base_url: Annotated[str, _BASE_URL] = _HERE,
    api_key: Annotated[str, _API_KEY] = "",
) -> None:
    """Make a data set of a teacher's answers, train a student on it, and compare it with its base and the teacher.

    The answers are the project's stored completions, or are asked for with --prompts and --teacher. Prints the id, the
    stages and the result; ends with status 1 when there is none. Stopping the command stops nothing else.
    """
    from services.cli import distill as distilling
    from services.cli.openai_api import OpenAIApi

    with _told_errors(), OpenAIApi(base_url, api_key) as api:
        if follow is None:
            if not student or graders is None:
                raise InvalidRequest("give --student and --graders, or --follow with the id of a distillation")
            read = distilling.graders_in(graders)
            sampling = {"max_completion_tokens": max_tokens}
            source = distilling.source_of(
                api, prompts=prompts, teacher=teacher, ask=ask, model=model, metadata=metadata or [], sampling=sampling
            )
            follow = distilling.begin(api, {
                "name": name, "source": source, "graders": read,
                "evaluation": {"held_out": held_out, "sampling_params": sampling},
                "filter": {
                    "minimum_scores": distilling.scores(minimum_score or []), "near_duplicates": near_duplicates,
                    "max_rows": max_rows,
                },
                "student": {
                    "model": student, "suffix": suffix, "hyperparameters": {"n_epochs": epochs or "auto"},
                },
            })  # fmt: skip
        typer.echo(follow)
        if wait and not distilling.follow(api, follow, typer.echo):
            raise typer.Exit(1)


models = typer.Typer(no_args_is_help=True, help="The models of a project, and adapters from elsewhere.")
app.add_typer(models, name="models")


@models.command("import")
def import_model(
    source: Annotated[
        str, typer.Argument(help="Folder of a PEFT adapter, archive of `export --oci`, or a hub's owner/name.")
    ],
    base: Annotated[str | None, typer.Option(help="The server's base that it is for; else the one it names.")] = None,
    suffix: Annotated[str | None, typer.Option(help="A name of yours in the model's name.")] = None,
    base_url: Annotated[str, _BASE_URL] = _HERE,
    api_key: Annotated[str, _API_KEY] = "",
) -> None:
    """Make a fine-tuned model of an adapter from elsewhere, and print its name."""
    from services.cli.import_adapter import import_adapter
    from services.cli.openai_api import OpenAIApi

    with _told_errors(), OpenAIApi(base_url, api_key) as api:
        import_adapter(source, api, base=base, suffix=suffix, say=typer.echo, warn=partial(typer.echo, err=True))


@models.command("list")
def list_models(base_url: Annotated[str, _BASE_URL] = _HERE, api_key: Annotated[str, _API_KEY] = "") -> None:
    """Print the names of the models that the key may use, bases first."""
    from services.cli.openai_api import OpenAIApi

    with _told_errors(), OpenAIApi(base_url, api_key) as api:
        for model in api.get("/models")["data"]:
            typer.echo(model["id"])


@models.command("delete")
def delete_model(
    name: Annotated[str, typer.Argument(help="Name of a fine-tuned model; it stops answering at once.")],
    base_url: Annotated[str, _BASE_URL] = _HERE,
    api_key: Annotated[str, _API_KEY] = "",
) -> None:
    """Delete a fine-tuned model of the project."""
    from services.cli.openai_api import OpenAIApi

    with _told_errors(), OpenAIApi(base_url, api_key) as api:
        api.delete(f"/models/{quote(name, safe='')}")


keys = typer.Typer(no_args_is_help=True, help="The server's own admin key.")
app.add_typer(keys, name="keys")


@keys.command("rotate-admin")
def rotate_admin(
    base_url: Annotated[str, _BASE_URL] = _HERE,
    data_dir: Annotated[Path | None, typer.Option(envvar=f"{ENV_PREFIX}DATA_DIR", help="The server's folder.")] = None,
    config: _CONFIG = None,
) -> None:
    """Replace the data folder's admin key; the former one stops working at once, on every API of the database."""
    from services.cli.admin_key import rotate

    with _told_errors():
        rotate(Settings.load({"data_dir": data_dir and str(data_dir)}, config=config), base_url, typer.echo)


def _one_place(to: Path | None, oci: Path | None) -> Path:
    place = to or oci
    if place is None or (to and oci):
        raise InvalidRequest("give --to, or --oci for an archive: one of the two")
    return place


@contextmanager
def _told_errors() -> Iterator[None]:
    """End with status 2 and a sentence for everything that this project raises on purpose."""
    try:
        yield
    except SelftuneError as error:
        typer.echo(f"selftune: {error}", err=True)
        raise typer.Exit(2) from error
    except OSError as error:
        if error.filename is None:
            raise
        typer.echo(f"selftune: {error.filename}: {error.strerror}", err=True)
        raise typer.Exit(2) from error


def main() -> None:
    app()


if __name__ == "__main__":
    main()
