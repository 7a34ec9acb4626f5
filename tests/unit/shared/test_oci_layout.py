"""An adapter as an OCI image layout: what the specification asks, the same bytes every time, nothing on trust."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from shared.adapters import CONFIG_NAME, WEIGHTS_NAME, adapter_digest
from shared.errors import InvalidRequest
from shared.oci_layout import ARTIFACT_TYPE, About, unpack, write_archive
from tests.adapter_files import write_adapter

Members = dict[str, bytes]

DESCRIPTOR = {
    "type": "object",
    "required": ["mediaType", "digest", "size"],
    "properties": {
        "mediaType": {"type": "string", "pattern": r"^[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}/[A-Za-z0-9!#$&^_.+-]+$"},
        "artifactType": {
            "type": "string",
            "pattern": r"^[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}/[A-Za-z0-9!#$&^_.+-]+$",
        },
        "digest": {"type": "string", "pattern": "^sha256:[a-f0-9]{64}$"},
        "size": {"type": "integer", "minimum": 0},
        "annotations": {"type": "object", "additionalProperties": {"type": "string"}},
    },
    "additionalProperties": False,
}
INDEX = {
    "type": "object",
    "required": ["schemaVersion", "manifests"],
    "properties": {
        "schemaVersion": {"const": 2},
        "mediaType": {"const": "application/vnd.oci.image.index.v1+json"},
        "manifests": {"type": "array", "items": DESCRIPTOR},
    },
    "additionalProperties": False,
}
MANIFEST = {
    "type": "object",
    "required": ["schemaVersion", "config", "layers"],
    "properties": {
        "schemaVersion": {"const": 2},
        "mediaType": {"const": "application/vnd.oci.image.manifest.v1+json"},
        "artifactType": DESCRIPTOR["properties"]["artifactType"],  # type: ignore[index]
        "config": DESCRIPTOR,
        "layers": {"type": "array", "minItems": 1, "items": DESCRIPTOR},
        "annotations": {"type": "object", "additionalProperties": {"type": "string"}},
    },
    "additionalProperties": False,
}
"""The specification's schemas (1.1), without the fields that are not used here."""


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    folder = write_adapter(tmp_path / "adapter")
    (folder / "README.md").write_text("# An adapter\n")
    return folder


@pytest.fixture
def about(adapter: Path) -> About:
    return About(name="ft:tiny:acme::abcdefgh", base="hub/tiny", rank=4, sha256=adapter_digest(adapter))


@pytest.fixture
def archive(adapter: Path, about: About, tmp_path: Path) -> Path:
    write_archive(adapter, about, tmp_path / "adapter.tar")
    return tmp_path / "adapter.tar"


def read(archive: Path) -> Members:
    with tarfile.open(archive) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]


def write(archive: Path, members: Members) -> None:
    with tarfile.open(archive, "w") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def blob(members: Members, descriptor: dict[str, Any]) -> bytes:
    content = members[f"blobs/sha256/{descriptor['digest'].removeprefix('sha256:')}"]
    assert (len(content), hashlib.sha256(content).hexdigest()) == (descriptor["size"], descriptor["digest"][7:])
    return content


def test_archive_is_what_the_specification_asks(archive: Path, adapter: Path) -> None:
    members = read(archive)
    assert json.loads(members["oci-layout"]) == {"imageLayoutVersion": "1.0.0"}
    index = json.loads(members["index.json"])
    jsonschema.validate(index, INDEX)
    (named,) = index["manifests"]
    manifest = json.loads(blob(members, named))
    jsonschema.validate(manifest, MANIFEST)
    assert manifest["artifactType"] == named["artifactType"] == ARTIFACT_TYPE
    assert manifest["annotations"] == {
        "selftune.base": "hub/tiny", "selftune.model": "ft:tiny:acme::abcdefgh", "selftune.rank": "4",
    }  # fmt: skip
    assert json.loads(blob(members, manifest["config"]))["base"] == "hub/tiny"
    titles = {layer["annotations"]["org.opencontainers.image.title"]: layer for layer in manifest["layers"]}
    assert {name: blob(members, layer) for name, layer in titles.items()} == {
        path.name: path.read_bytes() for path in adapter.iterdir()
    }
    assert len(members) == 2 + 2 + len(titles)


def test_same_adapter_gives_the_same_bytes(archive: Path, adapter: Path, about: About, tmp_path: Path) -> None:
    (tmp_path / "copy").mkdir()
    for path in adapter.iterdir():
        (tmp_path / "copy" / path.name).write_bytes(path.read_bytes())
        (tmp_path / "copy" / path.name).chmod(0o600)
    digest = write_archive(tmp_path / "copy", about, tmp_path / "again.tar")
    assert (tmp_path / "again.tar").read_bytes() == archive.read_bytes()
    assert digest == json.loads(read(archive)["index.json"])["manifests"][0]["digest"]


def test_round_trip_gives_the_adapter_back(archive: Path, adapter: Path, about: About, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    assert unpack(archive, tmp_path / "out") == about
    assert {path.name for path in (tmp_path / "out").iterdir()} == {CONFIG_NAME, WEIGHTS_NAME}
    assert adapter_digest(tmp_path / "out") == about.sha256


def test_layout_that_another_program_has_packed_is_read(archive: Path, about: About, tmp_path: Path) -> None:
    """As `tar -C layout -cf` does it: folders too, and a point before every name."""
    members = read(archive)
    with tarfile.open(archive, "w", format=tarfile.GNU_FORMAT) as tar:
        for name in (".", "./blobs", "./blobs/sha256"):
            folder = tarfile.TarInfo(name)
            folder.type = tarfile.DIRTYPE
            tar.addfile(folder)
        for name, content in reversed(members.items()):
            member = tarfile.TarInfo(f"./{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    (tmp_path / "out").mkdir()
    assert unpack(archive, tmp_path / "out") == about


def weights_of(members: Members) -> str:
    return max((name for name in members if name.startswith("blobs/")), key=lambda name: len(members[name]))


def damaged(members: Members) -> None:
    name = weights_of(members)
    members[name] = members[name][:-1] + b"\1"


def shortened(members: Members) -> None:
    name = weights_of(members)
    members[name] = members[name][:-1]


def without_weights(members: Members) -> None:
    del members[weights_of(members)]


def changed_manifest(change: Callable[[dict[str, Any]], object]) -> Callable[[Members], None]:
    """Change the manifest and name it anew, as somebody would who means it."""

    def work(members: Members) -> None:
        index = json.loads(members["index.json"])
        named = index["manifests"][0]
        manifest = json.loads(members.pop(f"blobs/sha256/{named['digest'][7:]}"))
        change(manifest)
        content = json.dumps(manifest).encode()
        named |= {"digest": f"sha256:{hashlib.sha256(content).hexdigest()}", "size": len(content)}
        members |= {f"blobs/sha256/{named['digest'][7:]}": content, "index.json": json.dumps(index).encode()}

    return work


def added(name: str) -> Callable[[Members], None]:
    return lambda members: members.update({name: b"x"})


def replaced(name: str, content: bytes) -> Callable[[Members], None]:
    return lambda members: members.update({name: content})


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (damaged, "holds other bytes"),
        (shortened, "are promised"),
        (without_weights, "is missing"),
        (added("../../etc/cron.d/x"), "belongs into an image layout"),
        (added("/etc/passwd"), "belongs into an image layout"),
        (added("blobs/sha256/../../x"), "belongs into an image layout"),
        (added("blobs/sha256/" + "A" * 64), "belongs into an image layout"),
        (replaced("oci-layout", b'{"imageLayoutVersion": "2.0.0"}'), "version '2.0.0'"),
        (replaced("oci-layout", b" " * (5 << 20)), "too large"),
        (replaced("index.json", b"{"), "adapter.tar"),
        (replaced("index.json", b'{"schemaVersion": 2, "manifests": []}'), "holds 0 manifests"),
        (lambda members: members.pop("index.json"), "index.json is missing"),
        (changed_manifest(lambda m: m.update(artifactType="application/x")), "is no adapter"),
        (changed_manifest(lambda m: m["layers"].pop(1)), "does not have one adapter_model.safetensors"),
        (changed_manifest(lambda m: m["layers"].append(m["layers"][1])), "does not have one adapter_model"),
        (changed_manifest(lambda m: m["layers"].append(m["layers"][2])), "names a blob twice"),
        (changed_manifest(lambda m: m["layers"].extend([m["layers"][2]] * 2)), "has 5 layers"),
        (changed_manifest(lambda m: m["layers"].pop(2)), "nothing names blobs/sha256/"),
        (added("blobs/sha256/" + "a" * 64), "nothing names blobs/sha256/aaa"),
        (changed_manifest(lambda m: m["layers"][0].update(digest="sha256:../../x")), "digest"),
        (changed_manifest(lambda m: m["layers"][0].update(digest="md5:" + "0" * 32)), "digest"),
        (changed_manifest(lambda m: m["config"].update(size=1 << 40)), "too large"),
        (changed_manifest(lambda m: m["layers"][1].update(size=1 << 40)), "are promised"),
    ],
)
def test_what_is_wrong_is_refused(
    archive: Path, tmp_path: Path, damage: Callable[[Members], object], reason: str
) -> None:
    members = read(archive)
    damage(members)
    write(archive, members)
    (tmp_path / "out").mkdir()
    with pytest.raises(InvalidRequest, match=reason):
        unpack(archive, tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"adapter", "adapter.tar", "out"}
    assert {path.name for path in (tmp_path / "out").iterdir()} <= {CONFIG_NAME, WEIGHTS_NAME}


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_links_and_devices_are_refused(archive: Path, tmp_path: Path, kind: bytes) -> None:
    with tarfile.open(archive, "a") as tar:
        member = tarfile.TarInfo("blobs/sha256/" + "0" * 64)
        member.type, member.linkname = kind, "/etc/passwd"
        tar.addfile(member)
    with pytest.raises(InvalidRequest, match="belongs into an image layout"):
        unpack(archive, tmp_path)


def test_member_that_is_there_twice_is_refused(archive: Path, tmp_path: Path) -> None:
    with tarfile.open(archive, "a") as tar:
        tar.addfile(tarfile.TarInfo("index.json"))
    with pytest.raises(InvalidRequest, match=r"index\.json is there twice"):
        unpack(archive, tmp_path)


def test_what_is_no_archive_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(b"no tar at all")
    with pytest.raises(InvalidRequest, match="not an uncompressed tar archive"):
        unpack(tmp_path / "x.tar", tmp_path)
