"""Prices of tokens: what the settings take, whose price holds, and what an amount of tokens costs."""

from __future__ import annotations

from pathlib import Path

import pytest

from shared.errors import InvalidRequest
from shared.prices import TokenPrice, price_of
from shared.settings import Settings


def test_cached_tokens_have_their_price_if_there_is_one() -> None:
    tokens = {"input_tokens": 1_000_000, "cached_tokens": 400_000, "output_tokens": 500_000}
    assert TokenPrice(input=2.0, output=4.0).of(**tokens) == pytest.approx(2 + 2)
    assert TokenPrice(input=2.0, output=4.0, cached_input=0.5).of(**tokens) == pytest.approx(1.2 + 0.2 + 2)


def test_a_models_own_price_comes_before_its_bases_and_any() -> None:
    own, base, any_ = (TokenPrice(input=n, output=n) for n in (1.0, 2.0, 3.0))
    prices = {"ft:b:o::x": own, "b": base, "*": any_}
    assert [price_of(prices, name, "b") for name in ("ft:b:o::x", "ft:b:o::y", "b")] == [own, base, base]
    assert price_of(prices, "ft:c:o::z", "c") == any_
    assert price_of({"b": base}, "c", "c") is None


def test_settings_take_prices_from_file_and_environment(tmp_path: Path) -> None:
    file = tmp_path / "selftune.toml"
    file.write_text('currency = "EUR"\n[model_prices."org/base"]\ninput = 1\noutput = 2.5\n')
    environ = {"SELFTUNE_HOSTED_PRICES": '{"large": {"input": 3, "output": 9, "cached_input": 1}}'}
    settings = Settings.load({"data_dir": str(tmp_path)}, environ=environ)
    assert settings.currency == "EUR"
    assert settings.model_prices == {"org/base": TokenPrice(input=1, output=2.5)}
    assert settings.hosted_prices == {"large": TokenPrice(input=3, output=9, cached_input=1)}
    assert Settings.load(environ=settings.to_env()) == settings


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("model_prices", '{"b": {"input": -1, "output": 1}}'),
        ("hosted_prices", '{"b": {"input": 1}}'),
        ("currency", "euro"),
        ("device_hour_price", "-3"),
    ],
)
def test_bad_prices_are_refused_by_the_settings_name(name: str, value: str) -> None:
    with pytest.raises(InvalidRequest, match=name):
        Settings.load(environ={f"SELFTUNE_{name.upper()}": value})
