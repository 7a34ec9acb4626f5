"""Adapters from elsewhere become models of the project, or are refused with the reason."""

from __future__ import annotations

import itertools
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
import pytest

from services.api.adapters.importing import AdapterImports
from shared.adapters import CONFIG_NAME, WEIGHTS_NAME, adapter_digest, verify_adapter
from shared.blobs.local import LocalBlobs
from shared.errors import NotFound
from shared.paths import Paths
from shared.records import AdapterRecord
from shared.settings import Settings
from shared.store.client import Client
from shared.store.files import FileStore
from shared.store.registry import Registry
from tests.adapter_files import CONFIG, HIDDEN, K, Q, lora, write_adapter, write_base, write_safetensors
from tests.api_server import ApiServer, know_key, make_adapter, make_base, with_store

BASE = "hub/tiny"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_base(tmp_path / "base")


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    return write_adapter(tmp_path / "adapter")


@pytest.fixture
def sdk(api: ApiServer, redis_url: str, base: Path) -> openai.OpenAI:
    async def fill(client: Client) -> None:
        await Registry(client).put_base(make_base(BASE, path=str(base)))
        await Registry(client).put_base(make_base("gone"))
        await Registry(client).publish(make_adapter(f"ft:{BASE}:acme::adapter0", base=BASE))

    with_store(redis_url, fill)
    return openai.OpenAI(base_url=f"{api.url}/v1", api_key=api.key, max_retries=0)


def upload(sdk: openai.OpenAI, path: Path, purpose: Any = "user_data") -> str:
    return sdk.files.create(file=path, purpose=purpose).id


def body_of(sdk: openai.OpenAI, adapter: Path, **changes: Any) -> dict[str, Any]:
    files = {name: upload(sdk, adapter / name) for name in (CONFIG_NAME, WEIGHTS_NAME)}
    return {"base": BASE, "files": files, **changes}


def create(sdk: openai.OpenAI, body: dict[str, Any], **headers: str) -> dict[str, Any]:
    answer: dict[str, Any] = sdk.post("/models", body=body, cast_to=dict[str, Any], options={"headers": headers})
    return answer


def refusal(sdk: openai.OpenAI, body: dict[str, Any]) -> dict[str, Any]:
    with pytest.raises(openai.APIStatusError) as caught:
        create(sdk, body)
    assert caught.value.status_code in (400, 404)
    return {"status": caught.value.status_code, **caught.value.body}  # type: ignore[dict-item]


def record_of(redis_url: str, name: str) -> AdapterRecord | None:
    return with_store(redis_url, lambda client: Registry(client).get(name))


def left_over(api: ApiServer) -> list[Path]:
    return [path for path in api.paths.partial.iterdir() if path.name.startswith("adapter-")]


def test_adapter_becomes_a_model(sdk: openai.OpenAI, api: ApiServer, redis_url: str, adapter: Path, base: Path) -> None:
    body = body_of(sdk, adapter, suffix="von mir")
    made = create(sdk, body)
    head, _, tail = made["id"].rpartition(":")
    assert head == f"ft:{BASE}:acme:von-mir" and len(tail) == 8
    assert (made["base"], made["rank"], made["owned_by"], made["warning"]) == (BASE, 4, "acme", None)
    assert made["id"] in [model.id for model in sdk.models.list()]
    record = record_of(redis_url, made["id"])
    assert record is not None and record.job_id == "" and record.sha256 == made["sha256"]
    for file_id in body["files"].values():
        sdk.files.delete(file_id)
    folder = api.paths.home / record.folder
    verify_adapter(folder, base_folder=base, base_id=BASE, max_rank=4, expected_sha256=made["sha256"])
    assert (folder / WEIGHTS_NAME).read_bytes() == (adapter / WEIGHTS_NAME).read_bytes()
    config = json.loads((folder / CONFIG_NAME).read_bytes())
    assert config["base_model_name_or_path"] == BASE
    assert config["target_modules"] == ["k_proj", "q_proj"]
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o644}
    assert left_over(api) == []
    sdk.models.delete(made["id"])
    assert made["id"] not in [model.id for model in sdk.models.list()]


def test_models_count_towards_storage_until_they_are_deleted(
    sdk: openai.OpenAI, api: ApiServer, redis_url: str, adapter: Path
) -> None:
    def kept() -> int:
        return with_store(redis_url, lambda client: FileStore(client).used_bytes("proj_default"))

    first, second = body_of(sdk, adapter), body_of(sdk, adapter)
    files = kept()
    made = create(sdk, first)
    record = record_of(redis_url, made["id"])
    assert record is not None
    size = sum(path.stat().st_size for path in (api.paths.home / record.folder).iterdir())
    assert (record.size_bytes, kept()) == (size, files + size)
    with_store(redis_url, lambda client: Registry(client).publish(record))
    assert kept() == files + size, "publishing twice counts once"
    with api.client() as http:
        limits = {"selftune": {"limits": {"storage_bytes": kept() + 100}}}
        http.post("/v1/organization/projects/proj_default", json=limits).raise_for_status()
        refused = http.post("/v1/models", json=second)
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "storage_limit_exceeded")
        sdk.models.delete(made["id"])
        assert kept() == files
        assert http.post("/v1/models", json=second).status_code == 200
    assert left_over(api) == []


def test_same_bytes_are_one_folder_under_two_names(sdk: openai.OpenAI, api: ApiServer, adapter: Path) -> None:
    one, two = create(sdk, body_of(sdk, adapter)), create(sdk, body_of(sdk, adapter))
    assert one["sha256"] == two["sha256"] and one["id"] != two["id"]
    assert adapter_digest(api.paths.adapter_folder(BASE, one["sha256"])) == one["sha256"]
    assert left_over(api) == []


def test_own_form_is_a_fixed_point(sdk: openai.OpenAI, api: ApiServer, adapter: Path, tmp_path: Path) -> None:
    """What was taken in, taken out and taken in again has the same name on disk."""
    first = create(sdk, body_of(sdk, adapter))
    again = create(sdk, body_of(sdk, api.paths.adapter_folder(BASE, first["sha256"])))
    assert again["sha256"] == first["sha256"]


def test_idempotency_key_gives_the_same_answer(sdk: openai.OpenAI, adapter: Path) -> None:
    (adapter / CONFIG_NAME).write_text(json.dumps(CONFIG | {"base_model_name_or_path": "hub/large"}))
    body = body_of(sdk, adapter)
    made = create(sdk, body, **{"Idempotency-Key": "once"})
    for file_id in body["files"].values():
        sdk.files.delete(file_id)
    assert create(sdk, body, **{"Idempotency-Key": "once"}) == made and "hub/large" in made["warning"]


def test_patterns_that_match_no_layer_are_left_out_and_the_others_keep_their_order(
    sdk: openai.OpenAI, api: ApiServer, adapter: Path
) -> None:
    """The first that matches counts; q_proj behind self_attn.q_proj says nothing more."""
    unused = {f"layers.{number}.mlp.up_proj": 64 for number in range(900)}
    used = {"self_attn.q_proj": 16, "self_attn.k_proj": 4, "q_proj": 2}
    (adapter / CONFIG_NAME).write_text(json.dumps(CONFIG | {"rank_pattern": unused, "alpha_pattern": unused | used}))
    made = create(sdk, body_of(sdk, adapter))
    config = json.loads((api.paths.adapter_folder(BASE, made["sha256"]) / CONFIG_NAME).read_bytes())
    assert (made["rank"], config["rank_pattern"]) == (4, {})
    assert list(config["alpha_pattern"].items()) == list(used.items())


def test_damage_of_the_base_is_not_the_adapters_fault(sdk: openai.OpenAI, adapter: Path, base: Path) -> None:
    body = body_of(sdk, adapter)
    (base / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-2.safetensors"}}')
    unfit(sdk, body)
    (base / "model.safetensors.index.json").unlink()
    (base / "model.safetensors").write_bytes(b"{}")
    unfit(sdk, body)
    (base / "model.safetensors").unlink()
    unfit(sdk, body)


def unfit(sdk: openai.OpenAI, body: dict[str, Any]) -> None:
    with pytest.raises(openai.InternalServerError) as caught:
        create(sdk, body)
    assert (caught.value.status_code, caught.value.code) == (503, "storage_unavailable")
    assert f"The files of '{BASE}'" in str(caught.value)


def test_model_whose_base_goes_meanwhile_is_taken_back(redis_url: str, tmp_path: Path) -> None:
    async def story(client: Client) -> None:
        registry = Registry(client)
        record = make_adapter(f"ft:{BASE}:acme::orphan00", base="deleted")
        await registry.publish(record)
        names: Any = None
        imports = AdapterImports(Settings(), FileStore(client), registry, names, LocalBlobs(Paths(tmp_path)))
        with pytest.raises(NotFound) as caught:
            await imports._check_base_again(record)
        assert caught.value.param == "base" and await registry.get(record.name) is None

    with_store(redis_url, story)


def test_other_name_of_the_base_is_taken_with_a_warning(sdk: openai.OpenAI, adapter: Path) -> None:
    for named, warned in (("/models/tiny/", False), (BASE, False), (None, False), ("hub/large", True)):
        (adapter / CONFIG_NAME).write_text(json.dumps(CONFIG | {"base_model_name_or_path": named}))
        warning = create(sdk, body_of(sdk, adapter))["warning"]
        assert (warning is not None and "hub/large" in warning) == warned, (named, warning)


def test_what_only_mattered_in_training_is_taken(sdk: openai.OpenAI, adapter: Path) -> None:
    options = {
        "target_modules": r".*\.layers\.\d+\.self_attn\.(q|k)_proj", "lora_dropout": 0.1, "task_type": "CAUSAL_LM",
        "layers_to_transform": [0], "revision": "main", "bias": "none", "use_dora": False, "eva_config": None,
        "rank_pattern": {r"model\.layers\.0\.self_attn\.k_proj": 4}, "alpha_pattern": {".*.q_proj": 16},
        "use_rslora": True, "a_field_of_tomorrow": None,
    }  # fmt: skip
    (adapter / CONFIG_NAME).write_text(json.dumps(CONFIG | options))
    assert create(sdk, body_of(sdk, adapter))["rank"] == 4


def option(**values: object) -> Callable[[Path], object]:
    return lambda folder: (folder / CONFIG_NAME).write_text(json.dumps(CONFIG | values))


def weights(shapes: dict[str, list[int]], **options: Any) -> Callable[[Path], object]:
    return lambda folder: write_safetensors(folder / WEIGHTS_NAME, shapes, **options)


def raw(content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / WEIGHTS_NAME).write_bytes(content)


def header(text: str) -> Callable[[Path], object]:
    return raw(struct.pack("<Q", len(text)) + text.encode())


SPELLINGS = list(
    dict.fromkeys(
        "".join("." if place in places else letter for place, letter in enumerate(Q))
        for places in itertools.combinations(range(len(Q)), 3)
    )
)[:401]
"""Many ways to name one layer."""


def with_number(pattern: str, value: int, dtype: str = "F32") -> Callable[[Path], object]:
    shapes = lora(Q, 4, HIDDEN, HIDDEN)
    width = struct.calcsize(pattern)
    return weights(shapes, dtype=dtype, data=bytes(width * 127) + struct.pack(pattern, value))


def cut(folder: Path) -> None:
    path = folder / WEIGHTS_NAME
    path.write_bytes(path.read_bytes()[:-10])


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (cut, "truncated or damaged"),
        (raw(b"PK\x03\x04" + bytes(100)), "is a pickle"),
        (raw(b"\x80\x02}q\x00."), "is a pickle"),
        (raw(b"{}"), "not a safetensors file"),
        (lambda folder: (folder / CONFIG_NAME).write_text("[]"), "not a JSON object"),
        (lambda folder: (folder / CONFIG_NAME).write_text("[" * 100_000), "not a JSON object"),
        (lambda folder: (folder / CONFIG_NAME).write_text("{}" + " " * (1 << 20)), "more than 1,048,576 bytes"),
        (lambda folder: (folder / CONFIG_NAME).write_text('{"peft_type": "LORA"}'), "missing required field `r`"),
        (option(peft_type="IA3"), "not a LoRA adapter"),
        (option(use_dora=True), "DoRA cannot be served"),
        (option(lora_bias=True), "trained biases"),
        (option(bias="all"), "trained biases"),
        (option(modules_to_save=["lm_head"]), "modules_to_save"),
        (option(init_lora_weights="pissa"), "initialisation changes the base"),
        (option(trainable_token_indices=[1]), "token embeddings"),
        (option(alora_invocation_tokens=[1]), "alora_invocation_tokens = [1] is more than a product"),
        (option(fan_in_fan_out=True), "fan_in_fan_out"),
        (option(r=64), "its rank is 64, this server takes 1 to 16"),
        (option(r=0), "its rank is 0"),
        (option(r=2), "has rank 4, where adapter_config.json says 2"),
        (option(rank_pattern={"(a+)+b": 4}), "has the pattern '(a+)+b'"),
        (option(rank_pattern={"a" * 201: 4}), "longer than 200 characters"),
        (option(rank_pattern={f"a{number}": 4 for number in range(1001)}), "more than 1000 entries"),
        (option(alpha_pattern=dict.fromkeys(SPELLINGS, 8)), "have 401 entries, 400 are taken"),
        (option(lora_alpha=1e9), "has an alpha of 1e+09"),
        (option(alpha_pattern={"q_proj": -1e6}), "has an alpha of -1e+06"),
        (header('{"a":' + "[" * 100_000), "cannot be read as safetensors: RecursionError"),
        (header(" " * (5 << 20)), "has a header of 5,242,880 bytes; 4,194,304 are taken"),
        (weights({}), "no tensors"),
        (weights(lora(Q, 4, HIDDEN // 2, HIDDEN)), "does not fit the base's"),
        (weights(lora(Q, 4, HIDDEN, HIDDEN * 2)), "does not fit the base's"),
        (weights(lora("model.layers.7.self_attn.q_proj", 4, HIDDEN, HIDDEN)), "it is for another base"),
        (weights(lora("lm_head", 4, HIDDEN, HIDDEN)), "not served"),
        (weights({f"base_model.model.{Q}.lora_A.weight": [4, HIDDEN]}), "its other half"),
        (weights({f"base_model.model.{Q}.lora_magnitude_vector": [4]}), "not a LoRA weight"),
        (with_number("<I", 0x7F800000), "not finite"),
        (with_number("<I", 0xFFC00000), "not finite"),
        (with_number("<H", 0xFC00, "F16"), "not finite"),
        (with_number("<H", 0x7F81, "BF16"), "not finite"),
    ],
)
def test_unfit_adapter_is_refused(
    sdk: openai.OpenAI, api: ApiServer, adapter: Path, damage: Callable[[Path], object], reason: str
) -> None:
    damage(adapter)
    before = sorted(api.paths.adapters.glob("*/*"))
    error = refusal(sdk, body_of(sdk, adapter))
    assert (error["status"], error["code"], error["param"]) == (400, "adapter_rejected", "files")
    assert reason in error["message"] and str(api.paths.home) not in error["message"]
    assert sorted(api.paths.adapters.glob("*/*")) == before and left_over(api) == []


def test_pickle_by_its_name_is_refused_with_what_to_do(sdk: openai.OpenAI) -> None:
    error = refusal(sdk, {"base": BASE, "files": {CONFIG_NAME: "file-x", "adapter_model.bin": "file-y"}})
    assert (error["code"], error["param"]) == ("pickled_weights", "files.adapter_model.bin")
    assert "safe_serialization=True" in error["message"]


@pytest.mark.parametrize(
    ("change", "status", "param"),
    [
        ({"base": "unknown"}, 404, "base"),
        ({"base": "../../etc"}, 404, "base"),
        ({"base": ""}, 404, "base"),
        ({"base": f"ft:{BASE}:acme::adapter0"}, 400, "base"),
        ({"base": "gone"}, 400, "base"),
        ({"base": 1}, 400, "base"),
        ({"suffix": ""}, 400, "suffix"),
        ({"suffix": "x" * 65}, 400, "suffix"),
        ({"model": "x"}, 400, "model"),
        ({"files": {}}, 400, "files.adapter_config.json"),
        ({"files": {CONFIG_NAME: "file-a"}}, 400, "files.adapter_model.safetensors"),
        ({"files": {CONFIG_NAME: "file-a", WEIGHTS_NAME: "file-b"}}, 404, "files.adapter_config.json"),
        ({"files": {CONFIG_NAME: "../a", WEIGHTS_NAME: "file-b"}}, 404, "files.adapter_config.json"),
    ],
)
def test_wrong_field_is_named(
    sdk: openai.OpenAI, adapter: Path, change: dict[str, Any], status: int, param: str
) -> None:
    error = refusal(sdk, body_of(sdk, adapter) | change)
    assert (error["status"], error["param"]) == (status, param)


def test_files_have_to_be_the_projects_and_meant_for_it(
    sdk: openai.OpenAI, api: ApiServer, redis_url: str, adapter: Path
) -> None:
    body = body_of(sdk, adapter)
    key = know_key(redis_url, "sk-of-somebody-else", project="proj_other")
    stranger = openai.OpenAI(base_url=f"{api.url}/v1", api_key=key, max_retries=0)
    assert refusal(stranger, body)["status"] == 404
    body["files"][WEIGHTS_NAME] = upload(sdk, adapter / WEIGHTS_NAME, purpose="assistants")
    error = refusal(sdk, body)
    assert (error["code"], error["param"]) == ("invalid_file_purpose", "files.adapter_model.safetensors")


def test_weights_of_one_layer_are_enough(sdk: openai.OpenAI, adapter: Path) -> None:
    write_safetensors(adapter / WEIGHTS_NAME, lora(K, 4, HIDDEN, 8))
    (adapter / CONFIG_NAME).write_text(json.dumps(CONFIG))
    assert create(sdk, body_of(sdk, adapter))["base"] == BASE
