from __future__ import annotations

from pathlib import Path

import pytest

from services.inference.engine.arguments import arguments, cpu_has_bf16, prepare_environment, served_rank, thread_count
from shared.records import AdapterRecord, BaseRecord
from shared.settings import Settings

BASE = BaseRecord(id="org/base", path="/models/base", fingerprint="f", context_length=1024, created_at=0)


def value_of(option: str, words: list[str]) -> str:
    return words[words.index(option) + 1]


def test_context_is_the_smaller_of_setting_and_model() -> None:
    assert value_of("--max-model-len", arguments(Settings(max_model_len=4096), BASE, on_cpu=True)) == "1024"
    assert value_of("--max-model-len", arguments(Settings(max_model_len=512), BASE, on_cpu=True)) == "512"


def test_cpu_gets_its_worker_and_a_bounded_cache() -> None:
    words = arguments(Settings(kv_cache_bytes=1 << 26), BASE, on_cpu=True)
    assert value_of("--worker-cls", words) == "services.inference.engine.worker_cpu.ManagedCPUWorker"
    assert value_of("--kv-cache-memory-bytes", words) == str(1 << 26)


def test_cuda_gets_its_worker_and_no_cpu_options() -> None:
    words = arguments(Settings(), BASE, on_cpu=False)
    assert value_of("--worker-cls", words) == "services.inference.engine.worker.ManagedGPUWorker"
    assert "--kv-cache-memory-bytes" not in words


def test_merged_model_has_its_own_name_and_no_adapters() -> None:
    record = AdapterRecord(
        name="ft:x", base=BASE.id, base_fingerprint="f", folder="adapters/b/s", sha256="s", rank=300, project="p",
        job_id="", created_at=0,
    )  # fmt: skip
    words = arguments(Settings(data_dir="/data"), BASE, on_cpu=True, merged=record)
    assert value_of("--served-model-name", words) == "ft:x"
    assert value_of("--model", words) == BASE.path
    assert value_of("--load-format", words) == "selftune_merged"
    assert value_of("--model-loader-extra-config", words) == '{"adapter":"/data/adapters/b/s"}'
    assert [word for word in words if "lora" in word] == []


def test_one_place_more_than_asked_for_is_kept_spare() -> None:
    assert value_of("--max-cpu-loras", arguments(Settings(max_loras=8, max_cpu_loras=4), BASE, on_cpu=True)) == "9"


@pytest.mark.parametrize(("wanted", "served"), [(1, 1), (4, 8), (16, 16), (17, 32), (512, 512)])
def test_rank_is_rounded_up_to_what_vllm_knows(wanted: int, served: int) -> None:
    assert served_rank(Settings(max_lora_rank=wanted)) == served


def test_environment_keeps_what_is_set_and_closes_the_loading_routes() -> None:
    environ = {"OMP_NUM_THREADS": "7", "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"}
    prepare_environment(Settings(threads=2), environ)
    assert environ["OMP_NUM_THREADS"] == "7"
    assert environ["HF_HUB_OFFLINE"] == "1"
    assert environ["VLLM_NO_USAGE_STATS"] == "1"
    assert "VLLM_ALLOW_RUNTIME_LORA_UPDATING" not in environ


def test_thread_count_is_the_setting_or_the_cores() -> None:
    assert thread_count(Settings(threads=3)) == 3
    assert thread_count(Settings()) >= 1


def test_bf16_needs_amx(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("flags\t\t: fpu avx512_bf16\n")
    assert not cpu_has_bf16(cpuinfo)
    cpuinfo.write_text("flags\t\t: fpu amx_bf16 amx_tile\n")
    assert cpu_has_bf16(cpuinfo)
    assert not cpu_has_bf16(tmp_path / "missing")


def test_the_base_that_is_waited_for(tmp_path: Path) -> None:
    folder = tmp_path / "my-base"
    folder.mkdir()
    assert Settings().public_base_id == "SmolLM2-135M-Instruct"
    assert Settings(base_model="org/name").public_base_id == "org/name"
    assert Settings(base_model=str(folder)).public_base_id == "my-base"
    assert Settings(base_model=str(folder), base_model_id="mine").public_base_id == "mine"


@pytest.mark.parametrize(
    ("template", "parser"),
    [
        ("{{ '<|im_start|>' + message.role }}", "hermes"),
        ("<tool_call>{{ call | tojson }}</tool_call>", "hermes"),
        ("{{ '<|python_tag|>' }}", "llama3_json"),
        ("[TOOL_CALLS]", "mistral"),
        ("<tool_call><function=name>", "qwen3_coder"),
    ],
)
def test_tool_parser_follows_the_chat_template(tmp_path: Path, template: str, parser: str) -> None:
    (tmp_path / "chat_template.jinja").write_text(template)
    base = BaseRecord(id="b", path=str(tmp_path), fingerprint="f", context_length=1024, created_at=0)
    assert value_of("--tool-call-parser", arguments(Settings(), base, on_cpu=True)) == parser
    assert value_of("--tool-call-parser", arguments(Settings(tool_call_parser="xlam"), base, on_cpu=True)) == "xlam"
    assert "--enable-auto-tool-choice" not in arguments(Settings(tool_call_parser="off"), base, on_cpu=True)


def test_media_come_from_named_hosts_alone() -> None:
    hosts = ["*.example.com", "none", "cdn.example.com"]
    assert value_of("--allowed-media-domains", arguments(Settings(), BASE, on_cpu=True)) == "none.invalid"
    words = arguments(Settings(outgoing_hosts=hosts), BASE, on_cpu=True)
    assert value_of("--allowed-media-domains", words) == "cdn.example.com"
    environ: dict[str, str] = {}
    prepare_environment(Settings(), environ)
    assert environ["VLLM_MEDIA_URL_ALLOW_REDIRECTS"] == "0"


def test_model_code_is_never_trusted_and_local_files_are_never_media() -> None:
    words = arguments(Settings(), BASE, on_cpu=True)
    assert not {"--trust-remote-code", "--allowed-local-media-path"} & set(words)
