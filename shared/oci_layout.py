"""An adapter as one file that registries and their tools know: an OCI image layout in a tar archive.

    oci-layout             the layout's version
    index.json             names the manifest
    blobs/sha256/<hex>     manifest, description, and each file of the adapter, named by what they hold

After the OCI image specification 1.1 (image-layout.md; manifest.md, "Guidelines for Artifact Usage"). The same adapter
under the same name gives the same bytes: no times, no owners, a fixed order. An archive is read by digests; one with
names other than those above is refused, and nothing is unpacked under a name that it chose.
"""

from __future__ import annotations

import hashlib
import io
import re
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Annotated, TypeVar

import msgspec
from msgspec import Meta, Struct

from shared.adapters import CONFIG_NAME, WEIGHTS_NAME
from shared.errors import InvalidRequest

T = TypeVar("T", bound=Struct)

ARTIFACT_TYPE = "application/vnd.selftune.adapter.v1"
ABOUT_TYPE = "application/vnd.selftune.adapter.about.v1+json"
INDEX_TYPE = "application/vnd.oci.image.index.v1+json"
MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
_FILE_TYPES = {
    CONFIG_NAME: "application/vnd.selftune.adapter.config.v1+json",
    WEIGHTS_NAME: "application/vnd.selftune.adapter.weights.v1.safetensors",
    "manifest.json": "application/vnd.selftune.adapter.origin.v1+json",
    "README.md": "text/markdown",
}
_TITLE = "org.opencontainers.image.title"
_REFERENCE = "org.opencontainers.image.ref.name"

_LAYOUT = "oci-layout"
_INDEX = "index.json"
_NAME = re.compile(r"oci-layout|index\.json|blobs/sha256/[0-9a-f]{64}")
_FOLDERS = frozenset({"", ".", "blobs", "blobs/sha256"})
_MAX_MEMBERS = 1000
_MAX_DOCUMENT_BYTES = 4 << 20
_BLOCK_BYTES = 1 << 20


class About(Struct, frozen=True, kw_only=True):
    """What an adapter is: the artifact's configuration, and its manifest's annotations."""

    name: str
    """As the model was called where it comes from."""
    base: str
    rank: int
    sha256: str
    """shared.adapters.adapter_digest of the two files."""


class _Descriptor(Struct, frozen=True, kw_only=True, omit_defaults=True, rename="camel"):
    media_type: str
    digest: Annotated[str, Meta(pattern=r"\Asha256:[0-9a-f]{64}\Z")]
    size: Annotated[int, Meta(ge=0)]
    artifact_type: str | None = None
    annotations: dict[str, str] | None = None

    @property
    def path(self) -> str:
        return f"blobs/sha256/{self.digest.removeprefix('sha256:')}"


class _Manifest(Struct, frozen=True, kw_only=True, rename="camel"):
    schema_version: int
    media_type: str
    artifact_type: str
    config: _Descriptor
    layers: list[_Descriptor]
    annotations: dict[str, str] = {}


class _Index(Struct, frozen=True, kw_only=True, rename="camel"):
    schema_version: int
    media_type: str = INDEX_TYPE
    manifests: list[_Descriptor]


class _Layout(Struct, frozen=True, kw_only=True, rename="camel"):
    image_layout_version: str


def write_archive(adapter: Path, about: About, file: Path) -> str:
    """Write an adapter's folder as an archive, and return its manifest's digest, `sha256:…`. Raises OSError."""
    paths = [adapter / name for name in _FILE_TYPES if (adapter / name).is_file()]
    layers = [_of_file(path) for path in paths]
    description = _document(about)
    manifest = _document(
        _Manifest(
            schema_version=2,
            media_type=MANIFEST_TYPE,
            artifact_type=ARTIFACT_TYPE,
            config=_of_bytes(description, ABOUT_TYPE),
            layers=layers,
            annotations={"selftune.base": about.base, "selftune.model": about.name, "selftune.rank": str(about.rank)},
        )
    )
    named = msgspec.structs.replace(
        _of_bytes(manifest, MANIFEST_TYPE), artifact_type=ARTIFACT_TYPE, annotations={_REFERENCE: "latest"}
    )
    blobs: dict[str, bytes | Path] = {
        _of_bytes(description, ABOUT_TYPE).path: description,
        named.path: manifest,
        **{layer.path: path for layer, path in zip(layers, paths, strict=True)},
    }
    with tarfile.open(file, "w:", format=tarfile.PAX_FORMAT) as tar:  # PAX, for files of more than 8 GiB
        _add(tar, _LAYOUT, _document(_Layout(image_layout_version="1.0.0")))
        _add(tar, _INDEX, _document(_Index(schema_version=2, manifests=[named])))
        for name in sorted(blobs):
            _add(tar, name, blobs[name])
    return named.digest


def unpack(archive: Path, folder: Path) -> About:
    """Check an archive whole, and write the adapter's two files into `folder` under their usual names.

    Raises InvalidRequest for what is no such archive, is damaged, or holds anything that a layout does not; OSError.
    """
    try:
        with tarfile.open(archive, "r:") as tar:
            return _Archive(tar, archive.name).unpack(folder)
    except tarfile.TarError as error:
        raise InvalidRequest(f"{archive} is not an uncompressed tar archive: {error}") from error


class _Archive:
    """An open archive, whose members have harmless names and are plain files."""

    def __init__(self, tar: tarfile.TarFile, name: str) -> None:
        self._tar = tar
        self._name = name
        self._members = dict(self._harmless())

    def unpack(self, folder: Path) -> About:
        layout = self._read(_LAYOUT, _Layout)
        if not layout.image_layout_version.startswith("1."):
            raise self._refused(f"its layout has version {layout.image_layout_version[:20]!r}, not 1")
        named, manifest = self._manifest()
        about = _decoded(self._blob(manifest.config), About, self._name)
        kept = {_FILE_TYPES[name]: folder / name for name in (CONFIG_NAME, WEIGHTS_NAME)}
        for kind, path in kept.items():
            if [layer.media_type for layer in manifest.layers].count(kind) != 1:
                raise self._refused(f"it does not have one {path.name}")
        self._check_blobs([named, manifest.config, *manifest.layers])
        for layer in manifest.layers:
            self._copy(layer, kept.get(layer.media_type))
        return about

    def _harmless(self) -> Iterator[tuple[str, tarfile.TarInfo]]:
        seen: set[str] = set()
        for member in self._tar:
            name = member.name.removeprefix("./").rstrip("/")
            if member.isdir() and name in _FOLDERS:
                continue
            if not member.isreg() or member.issparse() or not _NAME.fullmatch(name):
                raise self._refused(f"{member.name[:100]!r} is nothing that belongs into an image layout")
            if name in seen or len(seen) == _MAX_MEMBERS:
                raise self._refused(f"{name} is there twice" if name in seen else "it has too many members")
            seen.add(name)
            yield name, member

    def _check_blobs(self, named: list[_Descriptor]) -> None:
        """Raise InvalidRequest unless every blob is one of those that are named, and each is named once."""
        if len(named) > 2 + len(_FILE_TYPES):
            raise self._refused(f"it has {len(named) - 2} layers, where an adapter has at most {len(_FILE_TYPES)}")
        paths = {descriptor.path for descriptor in named}
        if len(paths) < len(named):
            raise self._refused("it names a blob twice")
        if unnamed := self._members.keys() - paths - {_LAYOUT, _INDEX}:
            raise self._refused(f"nothing names {min(unnamed)}")

    def _manifest(self) -> tuple[_Descriptor, _Manifest]:
        index = self._read(_INDEX, _Index)
        found = [one for one in index.manifests if one.media_type == MANIFEST_TYPE]
        adapters = [one for one in found if one.artifact_type == ARTIFACT_TYPE]
        if len(adapters or found) != 1:
            raise self._refused(f"it holds {len(adapters or found)} manifests, where one is looked for")
        named = (adapters or found)[0]
        manifest = _decoded(self._blob(named), _Manifest, self._name)
        if manifest.artifact_type != ARTIFACT_TYPE:
            raise self._refused(f"it holds {manifest.artifact_type[:100]!r}, which is no adapter")
        return named, manifest

    def _read(self, name: str, kind: type[T]) -> T:
        with self._open(name) as (stream, size):
            if size > _MAX_DOCUMENT_BYTES:
                raise self._refused(f"{name} is too large")
            return _decoded(stream.read(), kind, self._name)

    def _blob(self, descriptor: _Descriptor) -> bytes:
        if descriptor.size > _MAX_DOCUMENT_BYTES:
            raise self._refused(f"{descriptor.digest} is too large")
        return b"".join(self._checked(descriptor))

    def _copy(self, descriptor: _Descriptor, target: Path | None) -> None:
        """Check a blob, and write it to `target` if there is one."""
        if target is None:
            for _ in self._checked(descriptor):
                continue
            return
        with target.open("xb") as out:
            out.writelines(self._checked(descriptor))

    def _checked(self, descriptor: _Descriptor) -> Iterator[bytes]:
        """Yield a blob in blocks. Raises InvalidRequest at its end when size or digest is another than promised."""
        digest = hashlib.sha256()
        with self._open(descriptor.path) as (stream, size):
            if size != descriptor.size:
                raise self._refused(f"{descriptor.digest} has {size} bytes, where {descriptor.size} are promised")
            while block := stream.read(_BLOCK_BYTES):
                digest.update(block)
                yield block
        if digest.hexdigest() != descriptor.digest.removeprefix("sha256:"):
            raise self._refused(f"{descriptor.digest} holds other bytes: damaged or replaced")

    @contextmanager
    def _open(self, name: str) -> Iterator[tuple[IO[bytes], int]]:
        member = self._members.get(name)
        stream = None if member is None else self._tar.extractfile(member)
        if member is None or stream is None:
            raise self._refused(f"{name} is missing")
        with stream:
            yield stream, member.size

    def _refused(self, reason: str) -> InvalidRequest:
        return InvalidRequest(f"{self._name}: {reason}")


def _decoded(raw: bytes, kind: type[T], archive: str) -> T:
    try:
        return msgspec.json.decode(raw, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest(f"{archive}: {error}") from error


def _document(value: Struct) -> bytes:
    return msgspec.json.encode(value, order="sorted")


def _of_bytes(data: bytes, kind: str) -> _Descriptor:
    return _Descriptor(media_type=kind, digest=f"sha256:{hashlib.sha256(data).hexdigest()}", size=len(data))


def _of_file(path: Path) -> _Descriptor:
    with path.open("rb") as handle:
        digest = hashlib.file_digest(handle, "sha256").hexdigest()
    return _Descriptor(
        media_type=_FILE_TYPES[path.name],
        digest=f"sha256:{digest}",
        size=path.stat().st_size,
        annotations={_TITLE: path.name},
    )


def _add(tar: tarfile.TarFile, name: str, content: bytes | Path) -> None:
    """Append a file with nothing in its header but name and size."""
    member = tarfile.TarInfo(name)
    if isinstance(content, bytes):
        member.size = len(content)
        tar.addfile(member, io.BytesIO(content))
        return
    member.size = content.stat().st_size
    with content.open("rb") as handle:
        tar.addfile(member, handle)
