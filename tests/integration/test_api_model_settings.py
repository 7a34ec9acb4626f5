"""The settings of a fine-tuned model over HTTP: who may change them, what is refused, what goes with the model."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx2
import openai
import pytest

from shared import keys
from shared.errors import NotFound
from shared.model_records import Access, ModelSettingsRecord
from shared.records import DEFAULT_PROJECT
from shared.store.client import Client
from shared.store.model_settings import ModelSettingsStore
from shared.store.permissions import PermissionStore
from shared.store.registry import Registry
from tests.api_server import BASE, ApiServer, know_key, make_adapter, make_base, with_store

MINE = f"ft:{BASE}:acme:style:AbCdEfGh"
STEP = f"{MINE}:ckpt-step-4"
THEIRS = f"ft:{BASE}:acme:theirs:ZyXwVuTs"
WHOLE = f"ft:{BASE}:acme:whole:00000000"
TEMPLATE = "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}{% endfor %}"
EMPTY = {
    "object": "model.settings", "model": MINE, "revision": 0, "updated_at": None, "system_prompt": None,
    "temperature": None, "top_p": None, "max_completion_tokens": None, "stop": None, "presence_penalty": None,
    "frequency_penalty": None, "seed": None, "chat_template": None, "pinned": False, "allowed_keys": None,
}  # fmt: skip


@pytest.fixture
def models(api: ApiServer, redis_url: str) -> ApiServer:
    async def fill(client: Client) -> None:
        registry = Registry(client)
        await registry.put_base(make_base())
        for name, digest in ((MINE, "a"), (STEP, "b")):
            await registry.publish(make_adapter(name, sha256=digest * 64))
        await registry.publish(make_adapter(THEIRS, project="proj_other", sha256="c" * 64))
        await PermissionStore(client).grant(THEIRS, [DEFAULT_PROJECT])
        await registry.put_base(make_base(WHOLE, origin=BASE))
        await registry.publish(make_adapter(WHOLE, base=WHOLE, whole=True, sha256="d" * 64))

    with_store(redis_url, fill)
    return api


def path(model: str) -> str:
    return f"/v1/models/{model}/settings"


def change(api: ApiServer, model: str = MINE, key: str | None = None, **changes: Any) -> httpx2.Response:
    with api.client(key) as http:
        return http.post(path(model), json=changes)


def look(api: ApiServer, model: str = MINE, key: str | None = None) -> httpx2.Response:
    with api.client(key) as http:
        return http.get(path(model))


def error_of(answer: httpx2.Response) -> tuple[int, str | None, str | None]:
    error = answer.json()["error"]
    return answer.status_code, error["code"], error["param"]


def test_settings_are_set_one_by_one_and_taken_away(models: ApiServer) -> None:
    assert look(models).json() == EMPTY
    first = change(models, system_prompt="Be brief.", temperature=0.2, stop="END", seed=7).json()
    wanted = {"system_prompt": "Be brief.", "temperature": 0.2, "stop": ["END"], "seed": 7}
    assert first == EMPTY | wanted | {"revision": 1, "updated_at": first["updated_at"]}
    second = change(models, temperature=None, chat_template=TEMPLATE, max_completion_tokens=50).json()
    assert second == first | {
        "revision": 2, "updated_at": second["updated_at"], "temperature": None, "chat_template": TEMPLATE,
        "max_completion_tokens": 50,
    }  # fmt: skip
    assert look(models).json() == second
    assert change(models, temperature=None, stop=["END"]).json() == second, "nothing is changed"
    assert change(models).json() == second
    assert look(models, STEP).json() == EMPTY | {"model": STEP}, "a checkpoint is a model of its own"


def test_settings_go_with_the_model(models: ApiServer, redis_url: str) -> None:
    assert change(models, temperature=0.2, allowed_keys=[], pinned=True).status_code == 200
    with models.client() as http:
        assert http.delete(f"/v1/models/{MINE}").status_code == 200
    assert error_of(look(models)) == (404, "model_not_found", "model")
    assert error_of(change(models, temperature=1)) == (404, "model_not_found", "model")
    left = with_store(redis_url, lambda client: client.call("KEYS", f"*{MINE}"))
    assert left == []
    assert with_store(redis_url, lambda client: Registry(client).pinned()) == set()


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (BASE, (400, "base_model", "model")),
        (THEIRS, (404, "model_not_found", "model")),
        ("ft:nobody", (404, "model_not_found", "model")),
        ("a/b:c..d/%2e%2e", (404, "model_not_found", "model")),
        ("x" * 5000, (404, "model_not_found", "model")),
    ],
)
def test_only_fine_tuned_models_of_the_own_project_have_settings(
    models: ApiServer, model: str, expected: tuple[int, str, str]
) -> None:
    assert error_of(look(models, model)) == expected
    assert error_of(change(models, model, temperature=1)) == expected


@pytest.mark.parametrize(
    ("changes", "param", "words"),
    [
        ({"temperature": 2.1}, "temperature", "<= 2.0"),
        ({"top_p": 0}, "top_p", "> 0.0"),
        ({"max_completion_tokens": 0}, "max_completion_tokens", ">= 1"),
        ({"stop": []}, "stop", "length >= 1"),
        ({"stop": ["a"] * 5}, "stop", "length <= 4"),
        ({"presence_penalty": "much"}, "presence_penalty", "float"),
        ({"seed": 2**63}, "seed", "<= 9223372036854775807"),
        ({"system_prompt": ""}, "system_prompt", "length >= 1"),
        ({"system_prompt": "x" * 65_537}, "system_prompt", "length <= 65536"),
        ({"chat_template": "x" * 65_537}, "chat_template", "length <= 65536"),
        ({"chat_template": "ü" * 40_000}, "chat_template", "80,000 bytes"),
        ({"chat_template": "{% for m in messages %}"}, "chat_template", "line 1"),
        ({"chat_template": "{% for i in range(9999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"},
         "chat_template", "more time or memory"),
        ({"pinned": "yes"}, "pinned", "bool"),
        ({"allowed_keys": ["key_nobody"]}, "allowed_keys", "no API key 'key_nobody' in proj_default"),
        ({"allowed_keys": [5]}, "allowed_keys[0]", "str"),
        ({"top_k": 5}, "top_k", "Unknown parameter"),
    ],
)  # fmt: skip
def test_wrong_values_are_refused_and_named(models: ApiServer, changes: dict[str, Any], param: str, words: str) -> None:
    answer = change(models, **changes)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
    assert words in answer.json()["error"]["message"]
    assert look(models).json()["revision"] == 0


def test_a_template_must_take_the_system_prompt_whichever_comes_first(models: ApiServer) -> None:
    refusing = "{{ raise_exception('no system') if messages[0].role == 'system' }}{{ messages[-1].content }}"
    assert change(models, chat_template=refusing).status_code == 200
    answer = change(models, system_prompt="Be brief.")
    assert error_of(answer) == (400, "invalid_value", "chat_template")
    assert "no system" in answer.json()["error"]["message"]
    assert change(models, system_prompt="Be brief.", chat_template=None).status_code == 200
    assert error_of(change(models, chat_template=refusing)) == (400, "invalid_value", "chat_template")


def test_pins_are_limited_by_what_servers_can_keep(models: ApiServer, redis_url: str) -> None:
    names = [f"ft:{BASE}:acme::{number:08}" for number in range(17)]

    async def publish(client: Client) -> None:
        for number, name in enumerate(names):
            await Registry(client).publish(make_adapter(name, sha256=f"{number:064}"))

    with_store(redis_url, publish)
    made = [change(models, name, pinned=True) for name in names]
    assert [answer.status_code for answer in made] == [200] * 16 + [400], "a quarter of max_cpu_loras, which is 64"
    assert made[0].json()["pinned"] is True and made[0].json()["revision"] == 1
    assert error_of(made[-1]) == (400, "too_many_pinned", "pinned")
    assert change(models, names[0], pinned=True).json()["revision"] == 1, "it is pinned already"
    assert change(models, names[0], pinned=None).json() | {"updated_at": None} == EMPTY | {
        "model": names[0], "revision": 2,
    }  # fmt: skip
    assert change(models, names[-1], pinned=True).json()["pinned"] is True
    assert with_store(redis_url, lambda client: Registry(client).pinned()) == set(names[1:])


def test_a_base_of_its_own_is_not_pinned(models: ApiServer) -> None:
    answer = change(models, WHOLE, pinned=True)
    assert error_of(answer) == (400, "invalid_value", "pinned")
    assert change(models, WHOLE, system_prompt="Be brief.").json()["system_prompt"] == "Be brief."


def test_writers_at_once_lose_nothing(models: ApiServer) -> None:
    fields = {
        "temperature": 0.5, "top_p": 0.5, "seed": 5, "stop": ["x"], "presence_penalty": 0.5, "frequency_penalty": 0.5,
        "max_completion_tokens": 5, "system_prompt": "x",
    }  # fmt: skip

    async def write_all() -> None:
        headers = {"authorization": f"Bearer {models.key}"}
        async with httpx2.AsyncClient(base_url=models.url, headers=headers, trust_env=False, timeout=60) as http:
            answers = await asyncio.gather(*(http.post(path(MINE), json={k: v}) for k, v in fields.items()))
        assert {answer.status_code for answer in answers} == {200}

    asyncio.run(write_all())
    found = look(models).json()
    assert found | {"updated_at": None} == EMPTY | fields | {"revision": len(fields)}


def test_settings_of_a_model_that_goes_are_not_written(redis_url: str) -> None:
    async def story(client: Client) -> None:
        registry, store = Registry(client), ModelSettingsStore(client)
        await registry.publish(make_adapter(MINE))

        await registry.retire(MINE)
        with pytest.raises(NotFound, match=MINE):
            await store.update(MINE, lambda _: ModelSettingsRecord(revision=1, temperature=1.0))
        assert await client.call("EXISTS", keys.model_settings(MINE)) == 0

    with_store(redis_url, story)


class TestKeys:
    """Which keys may use a model."""

    @pytest.fixture
    def key(self, models: ApiServer) -> tuple[str, str]:
        return self.new_key(models)

    def new_key(self, api: ApiServer, project: str = DEFAULT_PROJECT) -> tuple[str, str]:
        """Make a key with the usual scopes and return its id and value."""
        with api.client() as http:
            made = http.post(f"/v1/organization/projects/{project}/api_keys", json={"name": "k"}).json()
        return made["id"], made["value"]

    def sdk(self, api: ApiServer, key: str) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{api.url}/v1", api_key=key, max_retries=0)

    def sees(self, api: ApiServer, key: str, model: str = MINE) -> bool:
        """Tell whether a key sees a model; it does everywhere or nowhere."""
        sdk = self.sdk(api, key)
        listed = model in [found.id for found in sdk.models.list()]
        try:
            sdk.models.retrieve(model)
        except openai.NotFoundError as error:
            assert (error.code, error.param) == ("model_not_found", "model")
            assert not listed
            return False
        assert listed
        return True

    def test_a_key_that_is_not_listed_is_a_strangers(self, models: ApiServer, key: tuple[str, str]) -> None:
        id, value = key
        other, other_value = self.new_key(models)
        assert change(models, allowed_keys=[other, other]).json()["allowed_keys"] == [other]
        assert not self.sees(models, value) and self.sees(models, other_value) and self.sees(models, models.key)
        assert self.sees(models, value, STEP), "checkpoints are models of their own"
        for refused in (look(models, key=value), change(models, key=value, allowed_keys=None)):
            assert error_of(refused) == (404, "model_not_found", "model")
        sdk = self.sdk(models, value)
        with pytest.raises(openai.NotFoundError):
            sdk.models.delete(MINE)
        file = sdk.files.create(file=("t.jsonl", b"{}\n"), purpose="fine-tune").id
        with pytest.raises(openai.NotFoundError, match=MINE) as caught:
            sdk.fine_tuning.jobs.create(model=MINE, training_file=file)
        assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
        assert self.sdk(models, other_value).fine_tuning.jobs.create(model=MINE, training_file=file).model == MINE
        assert change(models, key=other_value, allowed_keys=[other, id]).status_code == 200
        assert self.sees(models, value)
        assert change(models, allowed_keys=None).json()["allowed_keys"] is None

    def test_a_revoked_key_stays_harmless(self, models: ApiServer, key: tuple[str, str]) -> None:
        id, _ = key
        assert change(models, allowed_keys=[id]).status_code == 200
        with models.client() as http:
            http.delete(f"/v1/organization/projects/{DEFAULT_PROJECT}/api_keys/{id}").raise_for_status()
        fresh, fresh_value = self.new_key(models)
        assert not self.sees(models, fresh_value) and self.sees(models, models.key)
        assert change(models, allowed_keys=[id, fresh]).json()["allowed_keys"] == [id, fresh]
        assert self.sees(models, fresh_value)
        assert error_of(change(models, STEP, allowed_keys=[id])) == (400, "invalid_value", "allowed_keys")

    def test_keys_of_projects_that_share_it_count(
        self, models: ApiServer, redis_url: str, key: tuple[str, str]
    ) -> None:
        admin = openai.OpenAI(base_url=f"{models.url}/v1", api_key=models.key, admin_api_key=models.key)
        guests = admin.admin.organization.projects.create(name="guests").id
        guest, guest_value = self.new_key(models, guests)
        assert error_of(change(models, allowed_keys=[guest])) == (400, "invalid_value", "allowed_keys")
        with_store(redis_url, lambda client: PermissionStore(client).grant(MINE, [guests]))
        assert self.sees(models, guest_value)
        assert change(models, allowed_keys=[key[0]]).status_code == 200
        assert not self.sees(models, guest_value)
        assert change(models, allowed_keys=[key[0], guest]).status_code == 200
        assert self.sees(models, guest_value)
        assert error_of(look(models, key=guest_value)) == (404, "model_not_found", "model"), "to use, not to look into"

    def test_a_whole_model_is_for_its_keys_as_well(self, models: ApiServer, key: tuple[str, str]) -> None:
        assert self.sees(models, key[1], WHOLE)
        assert change(models, WHOLE, allowed_keys=[]).status_code == 200
        assert not self.sees(models, key[1], WHOLE) and self.sees(models, models.key, WHOLE)

    def test_a_key_without_the_scope_changes_nothing(self, models: ApiServer) -> None:
        with models.client() as http:
            made = http.post(
                f"/v1/organization/projects/{DEFAULT_PROJECT}/api_keys",
                json={"name": "k", "selftune": {"scopes": ["read", "infer"]}},
            ).json()
        assert look(models, key=made["value"]).status_code == 200
        assert change(models, key=made["value"], temperature=1).status_code == 403

    def test_every_look_up_is_one_round_trip(self, models: ApiServer, redis_url: str) -> None:
        key = know_key(redis_url, "sk-another")

        async def count(client: Client) -> int:
            trips = 0
            access = Access(project=DEFAULT_PROJECT)
            await Registry(client).find(MINE, access)  # loads the script
            call = client.call

            async def counted(*command: Any) -> Any:
                nonlocal trips
                trips += 1
                return await call(*command)

            client.call = counted  # type: ignore[method-assign]
            client.together = None  # type: ignore[assignment, method-assign]
            found = (await Registry(client).find(MINE, access)).own
            assert found is not None
            assert found.settings is not None
            return trips

        assert change(models, system_prompt="x", key=key).status_code == 200
        assert with_store(redis_url, count) == 1
