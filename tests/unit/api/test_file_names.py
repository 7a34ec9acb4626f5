"""Content-Disposition: what a download is called, read back by the standard library's parser."""

from __future__ import annotations

from email.message import Message

import pytest

from services.api.files.names import attachment


@pytest.mark.parametrize(
    ("name", "header"),
    [
        ("train.jsonl", 'attachment; filename="train.jsonl"'),
        ("a b; c=d.jsonl", 'attachment; filename="a b; c=d.jsonl"'),
        ('a"b.jsonl', "attachment; filename=\"a_b.jsonl\"; filename*=UTF-8''a%22b.jsonl"),
        ("50%41.jsonl", "attachment; filename=\"50_41.jsonl\"; filename*=UTF-8''50%2541.jsonl"),
        ("ü.jsonl", "attachment; filename=\"_.jsonl\"; filename*=UTF-8''%C3%BC.jsonl"),
        (
            "训练 🙂.jsonl",
            "attachment; filename=\"__ _.jsonl\"; filename*=UTF-8''%E8%AE%AD%E7%BB%83%20%F0%9F%99%82.jsonl",
        ),
        ("a'(b)*\\.txt", "attachment; filename=\"a'(b)*_.txt\"; filename*=UTF-8''a%27%28b%29%2A%5C.txt"),
    ],
)
def test_file_has_a_plain_name_and_its_own(name: str, header: str) -> None:
    assert attachment(name) == header
    read = Message()
    read["content-disposition"] = header.replace(f' filename="{header.split(chr(34))[1]}";', "")
    assert read.get_filename() == name
