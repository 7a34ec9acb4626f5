"""The reading page: whole, public, and from this server alone."""

from __future__ import annotations

import re

import pytest

from tests.api_server import ApiServer

PARTS = ["start.js", "swagger-ui.css", "swagger-ui-bundle.js"]


def test_page_leads_to_no_other_host(api: ApiServer) -> None:
    with api.client(key="") as http:
        page = http.get("/docs")
        answers = [page, *(http.get(f"/docs/{part}") for part in PARTS)]
        targets = re.findall(r'(?:src|href)="([^"]*)"', page.text)
        start = answers[1].text
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert "//" not in page.text.replace("<!doctype", "")
    assert set(targets) == {"data:,", "/openapi.json", *(f"/docs/{part}" for part in PARTS)}
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\bon\w+=", page.text), "something is inline"
    assert re.findall(r"https?://", start) == [] and 'url: "/openapi.json"' in start and "validatorUrl: null" in start
    for answer in answers:
        assert answer.status_code == 200
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'self';")
        assert not any("//" in value for value in answer.headers.values())


def test_styles_load_nothing_from_elsewhere(api: ApiServer) -> None:
    with api.client(key="") as http:
        style = http.get("/docs/swagger-ui.css").text
    assert {url.strip("'\"")[:5] for url in re.findall(r"url\(([^)]*)", style)} <= {"data:"}
    assert "@import" not in style


@pytest.mark.parametrize("part", PARTS)
def test_parts_are_kept_by_browsers(api: ApiServer, part: str) -> None:
    with api.client(key="") as http:
        first = http.get(f"/docs/{part}")
        again = http.get(f"/docs/{part}", headers={"if-none-match": first.headers["etag"]})
    assert first.headers["cache-control"] == "public, max-age=86400"
    assert first.headers["content-type"].endswith("charset=utf-8") and len(first.content) > 100
    assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize("part", ["swagger-ui.js", "index.html", "..%2f..%2fopenapi.py", "x" * 300])
def test_nothing_else_is_served(api: ApiServer, part: str) -> None:
    with api.client(key="") as http:
        answer = http.get(f"/docs/{part}")
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "unknown_url"
