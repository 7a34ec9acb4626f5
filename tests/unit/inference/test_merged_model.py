"""What keeps a model from being merged, where no engine has to be asked."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.inference.adapters.merged_model import _verify
from shared.errors import AdapterRejected
from tests.api_server import make_adapter, make_base


@pytest.mark.parametrize("config", [b"{", b"[]", b"\xff", b"[" * 100_000])
def test_damaged_base_is_a_reason_to_wait(tmp_path: Path, config: bytes) -> None:
    (tmp_path / "config.json").write_bytes(config)
    with pytest.raises(AdapterRejected, match=r"config\.json of its base tiny cannot be read"):
        _verify(make_adapter("ft:tiny:acme::x"), make_base("tiny", path=str(tmp_path)), tmp_path)
