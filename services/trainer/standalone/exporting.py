"""What is asked for, and its forms: the adapter as it is or in an OCI archive, a whole model as a folder or as GGUF.

Model libraries are imported when something is merged, so that a mistake is told at once.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec
from msgspec import Struct

from services.trainer.standalone import ExportRefused
from services.trainer.standalone.placing import MARK, Placing
from services.trainer.standalone.source import MANIFEST, Source, find
from shared.adapter_form import read_form
from shared.adapters import CONFIG_NAME, WEIGHTS_NAME
from shared.errors import AdapterRejected
from shared.oci_layout import About, write_archive
from shared.paths import Paths
from shared.settings import Settings

if TYPE_CHECKING:
    from services.trainer.standalone.gguf_file import GgufFile
    from services.trainer.standalone.weights import BaseWeights

Kind = Literal["f32", "f16", "bf16", "q8_0"]
DType = Literal["float32", "float16", "bfloat16"]

_ADAPTER_FILES = (CONFIG_NAME, WEIGHTS_NAME, MANIFEST, "README.md")
_SMALL_BYTES = 16 << 20  # tokenizer, configuration, and what a file system needs


class Request(Struct, frozen=True):
    """What `selftune export` was asked for."""

    model: str
    """A fine-tuned model's name, or a folder with an adapter."""
    to: Path
    merge: bool = False
    gguf: Kind | None = None
    dtype: DType | None = None
    """Type of the merged weights; None keeps the base's."""
    base: Path | None = None
    force: bool = False
    oci: bool = False
    """`to` is an archive with the adapter in an OCI image layout."""

    def check(self) -> None:
        """Raise ExportRefused for what does not go together."""
        if self.dtype is not None and not self.merge:
            raise ExportRefused("--dtype is the type of merged weights: it goes with --merge; --gguf names its own")
        if self.gguf and not self.merge and self.to.suffix != ".gguf":
            raise ExportRefused("--to names the GGUF file, so it ends in .gguf; with --merge it names a folder")
        if self.oci and (self.merge or self.gguf):
            raise ExportRefused("--oci is an archive of the adapter alone: it goes with neither --merge nor --gguf")
        if self.oci and self.to.suffix != ".tar":
            raise ExportRefused("--oci names the archive, so it ends in .tar")


def export(request: Request, settings: Settings) -> Path:
    """Do what is asked, and return where the result is. Raises SelftuneError or OSError, with nothing left behind."""
    request.check()
    target = request.to.expanduser().resolve()
    placing = Placing(target, force=request.force)
    source = asyncio.run(find(request.model, settings, Paths(settings.home), request.base))
    with placing as folder:
        if source.adapter is None and request.oci:
            raise ExportRefused(f"{source.name} is a whole model; --oci is for adapters")
        if source.adapter is None and not request.gguf:
            request = msgspec.structs.replace(request, merge=True)  # it has no smaller form
        if request.merge or request.gguf:
            made = _write_whole(request, source, placing, folder)
        elif request.oci:
            made = _write_archive(source, placing, folder / target.name)
        else:
            made = _copy_adapter(source, folder)
        placing.place(made)
    return target


def _copy_adapter(source: Source, folder: Path) -> Path:
    assert source.adapter is not None
    for name in _ADAPTER_FILES:
        if (source.adapter / name).is_file():
            shutil.copyfile(source.adapter / name, folder / name)
    _mark(folder, source, "adapter")
    return folder


def _write_archive(source: Source, placing: Placing, file: Path) -> Path:
    assert source.adapter is not None
    try:
        form = read_form((source.adapter / CONFIG_NAME).read_bytes())
    except AdapterRejected as error:
        raise ExportRefused(f"{source.name}: {error.message}") from error
    placing.need((source.adapter / WEIGHTS_NAME).stat().st_size + _SMALL_BYTES)
    rank = max([form.rank, *form.rank_pattern.values()])
    write_archive(source.adapter, About(name=source.name, base=source.base_id, rank=rank, sha256=source.sha256), file)
    return file


def _write_whole(request: Request, source: Source, placing: Placing, folder: Path) -> Path:
    from services.trainer.standalone.adapter import Adapter
    from services.trainer.standalone.weights import BaseWeights, MergedWeights
    from services.trainer.standalone.whole_model import WholeModel

    adapter = source.adapter
    weights = BaseWeights(source.base) if adapter is None else MergedWeights(source.base, Adapter(adapter))
    as_folder = WholeModel(weights, source.base, request.dtype) if request.merge else None
    as_file = _gguf(weights, source, request.gguf) if request.gguf else None
    placing.need(sum(form.size_bytes for form in (as_folder, as_file) if form) + _SMALL_BYTES)
    file = folder / (f"model-{request.gguf}.gguf" if as_folder else request.to.name)
    if as_file:
        as_file.write(file)
    if not as_folder:
        return file
    as_folder.write(folder)
    (folder / "README.md").write_text(_readme(source), encoding="utf-8")
    _mark(folder, source, "whole model")
    return folder


def _gguf(weights: BaseWeights, source: Source, kind: Kind) -> GgufFile:
    from services.trainer.standalone.gguf_file import GgufFile

    return GgufFile(weights, source, kind)


def _mark(folder: Path, source: Source, form: str) -> None:
    facts = {
        "model": source.name,
        "form": form,
        "base": source.base_id,
        "whole_sha256" if source.adapter is None else "adapter_sha256": source.sha256,
        "versions": dict(_versions("torch", "transformers", "safetensors", "gguf")),
    }
    (folder / MARK).write_bytes(msgspec.json.format(msgspec.json.encode(facts), indent=2) + b"\n")


def _versions(*names: str) -> Iterator[tuple[str, str]]:
    """Tell the versions of what is installed: an adapter is copied without any of it."""
    for name in names:
        with suppress(PackageNotFoundError):
            yield name, version(name)


def _readme(source: Source) -> str:
    what = (
        "A model whose every weight was trained."
        if source.adapter is None
        else f"{source.base_id} with the adapter {source.sha256} merged into its weights."
    )
    return (
        f"# {source.name}\n\n{what}\n\n"
        "Load it with `transformers.AutoModelForCausalLM.from_pretrained(folder)`, or serve it with "
        "`vllm serve folder`.\nThe base's licence applies to it as well.\n"
    )
