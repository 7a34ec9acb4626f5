"""Sharing a fine-tuned model with another project, through the SDK."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal

import openai
import pytest

from shared.store.registry import Registry
from tests.api_server import BASE, ApiServer, know_key, make_adapter, make_base, with_store

MODEL = f"ft:{BASE}:acme:mine:shared00:ckpt-step-4"


@pytest.fixture
def owner(api: ApiServer, redis_url: str) -> openai.OpenAI:
    with_store(redis_url, lambda client: Registry(client).put_base(make_base()))
    with_store(redis_url, lambda client: Registry(client).publish(make_adapter(MODEL)))
    return openai.OpenAI(base_url=f"{api.url}/v1", api_key=api.key, max_retries=0)


@pytest.fixture
def other(owner: openai.OpenAI, api: ApiServer) -> str:
    """Id of another project."""
    admin = openai.OpenAI(base_url=f"{api.url}/v1", api_key=api.key, admin_api_key=api.key)
    return admin.admin.organization.projects.create(name="other").id


@pytest.fixture
def guest(api: ApiServer, redis_url: str, other: str) -> openai.OpenAI:
    key = know_key(redis_url, "sk-of-another-project", project=other)
    return openai.OpenAI(base_url=f"{api.url}/v1", api_key=key, max_retries=0)


def test_shared_model_is_the_guests_to_use_until_it_is_not(
    owner: openai.OpenAI, guest: openai.OpenAI, other: str
) -> None:
    permissions = owner.fine_tuning.checkpoints.permissions
    with pytest.raises(openai.NotFoundError):
        guest.models.retrieve(MODEL)
    (granted,) = permissions.create(MODEL, project_ids=[other]).data
    assert (granted.object, granted.project_id) == ("checkpoint.permission", other)
    assert guest.models.retrieve(MODEL).id == MODEL
    assert MODEL in [model.id for model in guest.models.list()]
    training_file = guest.files.create(file=("train.jsonl", b"{}\n"), purpose="fine-tune").id
    assert guest.fine_tuning.jobs.create(model=MODEL, training_file=training_file).model == MODEL
    with pytest.raises(openai.NotFoundError):
        guest.models.delete(MODEL)
    deleted = permissions.delete(granted.id, fine_tuned_model_checkpoint=MODEL)
    assert deleted.to_dict() == {"id": granted.id, "object": "checkpoint.permission", "deleted": True}
    with pytest.raises(openai.NotFoundError):
        guest.models.retrieve(MODEL)


@pytest.mark.parametrize("order", ["ascending", "descending"])
def test_permissions_are_taken_back_while_they_are_listed(
    owner: openai.OpenAI, api: ApiServer, order: Literal["ascending", "descending"]
) -> None:
    permissions = owner.fine_tuning.checkpoints.permissions
    admin = openai.OpenAI(base_url=f"{api.url}/v1", api_key=api.key, admin_api_key=api.key).admin.organization
    permissions.create(MODEL, project_ids=[admin.projects.create(name=str(n)).id for n in range(5)])
    listed = [item.id for item in permissions.list(MODEL, order=order)]
    seen = []
    for item in permissions.list(MODEL, limit=2, order=order):
        permissions.delete(item.id, fine_tuned_model_checkpoint=MODEL)
        seen.append(item.id)
    assert seen == listed and len(listed) == 5
    with pytest.raises(openai.NotFoundError):
        permissions.list(MODEL, after="cp_unknown")


def test_permissions_are_listed_in_both_orders_and_pages(owner: openai.OpenAI, api: ApiServer) -> None:
    permissions = owner.fine_tuning.checkpoints.permissions
    admin = openai.OpenAI(base_url=f"{api.url}/v1", api_key=api.key, admin_api_key=api.key).admin.organization
    projects = [admin.projects.create(name=str(n)).id for n in range(5)]
    made = [item.id for item in permissions.create(MODEL, project_ids=projects).data]
    assert [item.id for item in permissions.create(MODEL, project_ids=projects[::-1]).data] == made[::-1]
    assert [item.id for item in permissions.list(MODEL, limit=2)] == made[::-1]
    assert [item.id for item in permissions.list(MODEL, limit=2, order="ascending")] == made
    (found,) = permissions.list(MODEL, project_id=projects[3]).data
    assert found.project_id == projects[3]


def test_deleted_model_takes_its_permissions_along(
    owner: openai.OpenAI, guest: openai.OpenAI, other: str, redis_url: str
) -> None:
    owner.fine_tuning.checkpoints.permissions.create(MODEL, project_ids=[other])
    owner.models.delete(MODEL)
    assert MODEL not in [model.id for model in guest.models.list()]
    with_store(redis_url, lambda client: Registry(client).publish(make_adapter(MODEL)))
    with pytest.raises(openai.NotFoundError):
        guest.models.retrieve(MODEL)


def test_foreign_and_unknown_models_cannot_be_shared(owner: openai.OpenAI, guest: openai.OpenAI, other: str) -> None:
    for client, model in ((guest, MODEL), (owner, "ft:nothing:here::x"), (owner, BASE)):
        permissions = client.fine_tuning.checkpoints.permissions
        calls: list[Callable[[], object]] = [
            partial(permissions.create, model, project_ids=[other]),
            partial(permissions.list, model),
            partial(permissions.delete, "cp_x", fine_tuned_model_checkpoint=model),
        ]
        for call in calls:
            with pytest.raises(openai.NotFoundError) as caught:
                call()
            assert caught.value.code == "model_not_found"


def test_unknown_project_is_named_and_nothing_is_shared(owner: openai.OpenAI, other: str) -> None:
    permissions = owner.fine_tuning.checkpoints.permissions
    with pytest.raises(openai.NotFoundError, match="proj_nowhere"):
        permissions.create(MODEL, project_ids=[other, "proj_nowhere"])
    assert permissions.list(MODEL).data == []


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "project_ids"), ({"project_ids": []}, "project_ids"), ({"project_ids": [1]}, "project_ids[0]"),
        ({"project_ids": ["a"], "x": 1}, "x"), ({"project_ids": None}, "project_ids"),
        ({"project_ids": ["p"] * 101}, "project_ids"),
    ],
)  # fmt: skip
def test_wrong_field_is_named(owner: openai.OpenAI, body: dict[str, object], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        owner.post(f"/fine_tuning/checkpoints/{MODEL}/permissions", body=body, cast_to=object)
    assert caught.value.param == param
    with pytest.raises(openai.NotFoundError):
        owner.fine_tuning.checkpoints.permissions.delete("cp_unknown", fine_tuned_model_checkpoint=MODEL)
