"""Model ids in paths: whatever they hold, they come back whole."""

from __future__ import annotations

import pytest

from services.api.model_paths import model_id, routable

IDS = [
    "m",
    "ft:org/base:acme:s:Ab",
    "a/b/c",
    "..",
    "../x",
    "50%",
    "%2F",
    "settings",
    "a/settings/b",
    "é ü",
    "a\nb",
    "/",
]


@pytest.mark.parametrize("tail", ["", "/settings", "/residency"])
@pytest.mark.parametrize("name", IDS)
def test_an_id_is_one_segment_and_comes_back(name: str, tail: str) -> None:
    path = routable(f"/v1/models/{name}{tail}")
    _, v1, models, segment, *rest = path.split("/")
    assert (v1, models, rest) == ("v1", "models", [tail[1:]] if tail else [])
    assert model_id(segment) == name


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/", "/v1/files/a/b", "/v1/model/a/settings"])
def test_other_paths_stay(path: str) -> None:
    assert routable(path) == path


def test_permissions_have_an_id_before_them() -> None:
    path = routable("/v1/fine_tuning/checkpoints/ft:a/b:ckpt/permissions/cp_1")
    assert path == "/v1/fine_tuning/checkpoints/ft:a%2Fb:ckpt/permissions/cp_1"
