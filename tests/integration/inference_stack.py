"""A real inference replica for tests: tiny random Llama, real Valkey, `python -m services.inference` as a process."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import httpx2
import psutil

from shared.adapters import SERVED_MODULES, adapter_digest
from shared.records import AdapterRecord, BaseRecord, ReplicaRecord, Residency
from shared.settings import Settings
from shared.store.client import Client
from shared.store.presence import Presence
from shared.store.registry import Registry
from tests.api_server import NO_METRICS
from tests.conftest import start_valkey

T = TypeVar("T")

BASE_ID = "tiny-llama"
KEY = "internal-test-key"
START_DEADLINE_S = 240.0
_CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def make_base(folder: Path, *, layers: int = 2, seed: int = 0) -> Path:
    """Write a random Llama with a tokenizer of its own and a chat template."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = _train_tokenizer()
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=128, intermediate_size=256, num_hidden_layers=layers,
        num_attention_heads=2, num_key_value_heads=1, head_dim=64, max_position_embeddings=512,
        initializer_range=0.2, tie_word_embeddings=True, bos_token_id=None, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    LlamaForCausalLM(config).float().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _train_tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    special = ["<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=special,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    raw.train_from_iterator(["the quick brown fox jumps over the lazy dog", "what is the capital of france?"], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<|end|>", chat_template=_CHAT_TEMPLATE)


def make_adapter(folder: Path, base: Path, *, seed: int, rank: int = 4, base_id: str = BASE_ID) -> Path:
    """Write a random LoRA in PEFT's format, strong enough to change every greedy answer."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=sorted(SERVED_MODULES), init_lora_weights=False)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.2)
    model.peft_config["default"].base_model_name_or_path = base_id
    model.peft_config["default"].init_lora_weights = True
    model.save_pretrained(folder)
    return folder


class InferenceStack:
    """Valkey, a registered base and one replica over a temporary data folder."""

    def __init__(self, home: Path, base: Path, **settings: Any) -> None:
        self.home = home
        self.base = base
        self.settings = Settings(
            data_dir=str(home), redis_url=f"unix://{home}/valkey.sock", base_model=str(base), base_model_id=BASE_ID,
            internal_key=KEY, kv_cache_bytes=64 << 20, max_lora_rank=8, **(NO_METRICS | settings),
        )  # fmt: skip
        self.valkey = start_valkey(home)
        self.process: subprocess.Popen[bytes] | None = None
        self.replica: ReplicaRecord | None = None
        self.log = home / "inference.log"

    def register_base(self) -> None:
        record = BaseRecord(
            id=BASE_ID, path=str(self.base), fingerprint="tiny", context_length=512, created_at=int(time.time())
        )
        self.with_registry(lambda registry: registry.put_base(record))

    def start(self) -> None:
        """Start the replica's process; `wait_ready` follows."""
        self.process = self.spawn()

    def spawn(self) -> subprocess.Popen[bytes]:
        """Start a replica; whoever starts more than one ends them."""
        with self.log.open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "services.inference"], env=os.environ | self.settings.to_env(), stdout=log,
                stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip

    def wait_ready(self) -> ReplicaRecord:
        """Wait until the replica reports ready; its log is in the error when it does not."""

        def ready() -> ReplicaRecord | None:
            assert self.process is not None
            assert self.process.poll() is None, f"it ended with {self.process.returncode}:\n{self.tail()}"
            return next((replica for replica in self.replicas() if replica.state == "ready"), None)

        self.replica = self.wait_for(ready, START_DEADLINE_S)
        return self.replica

    def wait_for(self, condition: Callable[[], T | None], timeout_s: float = 30.0) -> T:
        """Return the condition's first true value."""
        deadline = time.monotonic() + timeout_s
        while not (value := condition()):
            assert time.monotonic() < deadline, f"it did not come true within {timeout_s} s:\n{self.tail()}"
            time.sleep(0.05)
        return value

    def publish(self, name: str, folder: Path, /, **changes: Any) -> AdapterRecord:
        """Copy an adapter into the data folder and declare it; `changes` override the record's fields."""
        digest = changes.pop("sha256", None) or adapter_digest(folder)
        final = self.home / "adapters" / BASE_ID / digest
        if not final.exists():
            shutil.copytree(folder, final)
        fields: dict[str, Any] = {
            "name": name, "base": BASE_ID, "base_fingerprint": "tiny", "folder": str(final.relative_to(self.home)),
            "sha256": digest, "rank": 4, "project": "proj_default", "job_id": "ftjob-test", "created_at": 1,
        }  # fmt: skip
        record = AdapterRecord(**(fields | changes))
        return self.with_registry(lambda registry: registry.publish(record))

    def retire(self, name: str) -> None:
        self.with_registry(lambda registry: registry.retire(name))

    def residency(self, name: str) -> Residency | None:
        found = self.with_registry(lambda registry: registry.residency(name))
        return found.get(self.replica.id) if self.replica else None

    def wait_residency(self, name: str, state: str) -> Residency:
        def reached() -> Residency | None:
            residency = self.residency(name)
            return residency if residency is not None and residency.state == state else None

        return self.wait_for(reached)

    def replicas(self) -> list[ReplicaRecord]:
        async def list_them(client: Client) -> list[ReplicaRecord]:
            return list(await Presence(client).replicas())

        return self._with_client(list_them)

    def http(self, **options: Any) -> httpx2.Client:
        """Return a client of the running replica, with the internal key."""
        assert self.replica is not None
        headers = {"authorization": f"Bearer {KEY}"}
        return httpx2.Client(base_url=self.replica.url, headers=headers, timeout=60, trust_env=False, **options)

    def processes(self) -> list[psutil.Process]:
        """List the replica's processes, the launcher first."""
        assert self.process is not None
        launcher = psutil.Process(self.process.pid)
        return [launcher, *launcher.children(recursive=True)]

    def tail(self, lines: int = 60) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:]) if self.log.exists() else ""

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(timeout=40)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def close(self) -> None:
        self.stop()
        self.valkey.terminate()
        self.valkey.wait(timeout=20)

    def with_registry(self, work: Callable[[Registry], Awaitable[T]]) -> T:
        async def run(client: Client) -> T:
            return await work(Registry(client))

        return self._with_client(run)

    def _with_client(self, work: Callable[[Client], Awaitable[T]]) -> T:
        async def run() -> T:
            client = Client(self.settings.redis_url, connections=2)
            try:
                return await work(client)
            finally:
                await client.close()

        return asyncio.run(run())


@contextmanager
def inference_stack(base: Path, **settings: Any) -> Iterator[InferenceStack]:
    """Run Valkey and a data folder (with a short path, for the socket); the caller starts the replica."""
    home = Path(tempfile.mkdtemp(prefix="st-inf-")).resolve()
    stack = InferenceStack(home, base, **settings)
    try:
        yield stack
    finally:
        stack.close()
        shutil.rmtree(home, ignore_errors=True)
