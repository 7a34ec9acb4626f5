"""Models: listing, names with slashes and colons, deletion."""

from __future__ import annotations

import openai
import pytest

from shared.store.client import Client
from shared.store.registry import Registry
from tests.api_server import BASE, ApiServer, know_key, make_adapter, make_base, with_store

MINE = f"ft:{BASE}:acme:style:AbCdEfGh"


@pytest.fixture
def sdk(api: ApiServer, redis_url: str) -> openai.OpenAI:
    async def fill(client: Client) -> None:
        registry = Registry(client)
        await registry.put_base(make_base())
        await registry.publish(make_adapter(MINE))
        await registry.publish(make_adapter("ft:foreign", project="proj_other", sha256="b" * 64))
        await registry.publish(make_adapter("ft:unlisted", listed=False, sha256="c" * 64))

    with_store(redis_url, fill)
    return openai.OpenAI(base_url=f"{api.url}/v1", api_key=api.key, max_retries=0)


def test_models_of_the_project_are_listed(sdk: openai.OpenAI) -> None:
    assert [model.to_dict() for model in sdk.models.list()] == [
        {"id": BASE, "object": "model", "created": 1_700_000_000, "owned_by": "system"},
        {"id": MINE, "object": "model", "created": 1_700_000_100, "owned_by": "acme"},
    ]


@pytest.mark.parametrize("name", [BASE, MINE])
def test_names_with_slashes_work_escaped_and_plain(sdk: openai.OpenAI, api: ApiServer, name: str) -> None:
    assert sdk.models.retrieve(name).id == name
    with api.client() as http:
        assert http.get(f"/v1/models/{name}").json()["id"] == name
        assert http.get(f"/v1/models/{name.replace('/', '%2F').replace(':', '%3A')}").json()["id"] == name


def test_deleted_model_is_gone_at_once(sdk: openai.OpenAI) -> None:
    assert sdk.models.delete(MINE).to_dict() == {"id": MINE, "object": "model", "deleted": True}
    assert [model.id for model in sdk.models.list()] == [BASE]
    for call in (sdk.models.retrieve, sdk.models.delete):
        with pytest.raises(openai.NotFoundError):
            call(MINE)
    with pytest.raises(openai.NotFoundError):
        sdk.chat.completions.create(model=MINE, messages=[{"role": "user", "content": "hi"}])


def test_base_cannot_be_deleted(sdk: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="only fine-tuned models"):
        sdk.models.delete(BASE)


@pytest.mark.parametrize("name", ["ft:nobody", "ft:foreign", "ft:unlisted", "a/b/c", "%"])
def test_unknown_foreign_and_unlisted_look_the_same(sdk: openai.OpenAI, name: str) -> None:
    for call in (sdk.models.retrieve, sdk.models.delete):
        with pytest.raises(openai.NotFoundError) as caught:
            call(name)
        assert (caught.value.param, caught.value.code) == ("model", "model_not_found")
        assert caught.value.body["message"] == (  # type: ignore[index]
            f"The model '{name}' does not exist or you do not have access to it."
        )


def test_other_project_sees_bases_and_its_own(sdk: openai.OpenAI, api: ApiServer, redis_url: str) -> None:
    key = know_key(redis_url, "sk-of-somebody-else", project="proj_other")
    client = openai.OpenAI(base_url=f"{api.url}/v1", api_key=key)
    assert [model.id for model in client.models.list()] == [BASE, "ft:foreign"]
