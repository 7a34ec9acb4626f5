"""What was trained as an immutable folder, named by its digest: an adapter in PEFT's format, or a whole model."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Mapping
from enum import Enum
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct
from peft import PeftModel
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor

from services.trainer.protocol import Metrics, TrainSpec
from services.trainer.standalone.trained import write_whole
from services.trainer.training.model import SCORE_NAME, TrainableModel
from shared.adapters import CONFIG_NAME, WEIGHTS_NAME, adapter_digest
from shared.paths import publish_folder

_VERSIONED = ("torch", "transformers", "peft", "safetensors")
_TRAINING = (
    "quantization", "packing", "max_length", "overlong", "lr_schedule", "warmup_ratio", "weight_decay", "max_grad_norm",
    "early_stopping", "gradient_accumulation_steps", "neftune_noise_alpha", "dtype", "evaluation_interval",
    "reinforcement",
)  # fmt: skip


class Manifest(Struct, frozen=True, kw_only=True):
    """manifest.json: where an adapter comes from."""

    base: str
    base_fingerprint: str
    base_weights: str = ""
    """base.weights.weights_digest() of the base; empty if it was not known."""
    job_id: str
    training_file_sha256: str
    method: str
    hyperparameters: dict[str, float]
    finetuning_type: str = "lora"
    lora: dict[str, Any] | None
    training: dict[str, Any]
    seed: int
    parent_sha256: str | None = None
    """The adapter that training went on from."""
    step: int
    metrics: Metrics | None
    """Of that step; None before the first."""
    versions: dict[str, str]


def export_model(
    model: TrainableModel, whole_weights: Mapping[str, Tensor], spec: TrainSpec, metrics: Metrics | None
) -> tuple[Path, str]:
    """Write what was trained under spec.adapters_folder and return (folder, digest).

    `whole_weights` are a whole model's, by name; `metrics` None says that no step was made. The same weights give the
    same folder; it is staged, fsynced and renamed: whole as soon as it is visible.
    """
    parent = Path(spec.adapters_folder)
    for partial in parent.glob(f".partial-{spec.job_id}-*"):  # of a process that died while it wrote
        shutil.rmtree(partial)
    staged = parent / f".partial-{spec.job_id}-{secrets.token_hex(4)}"
    staged.mkdir(parents=True)
    try:
        if isinstance(model.module, PeftModel):
            digest = _write_adapter(model.module, model.score, spec, staged)
        else:
            digest = write_whole(whole_weights, Path(spec.base_folder), staged)
        (staged / "manifest.json").write_bytes(_pretty(_manifest(spec, metrics)))
        (staged / "README.md").write_text(_readme(spec, metrics), encoding="utf-8")
        publish_folder(staged, parent / digest)
        return parent / digest, digest
    except BaseException:
        shutil.rmtree(staged, ignore_errors=True)
        raise


def _write_adapter(peft: PeftModel, score: Tensor | None, spec: TrainSpec, staged: Path) -> str:
    """Write an adapter; with a head, in PEFT's form for sequence classification."""
    state = get_peft_model_state_dict(peft, save_embedding_layers=False)
    weights = {name: tensor.contiguous().cpu() for name, tensor in state.items()}
    classified: dict[str, Any] = {}
    if score is not None:
        weights[SCORE_NAME] = score.detach().contiguous().cpu()
        classified = {"task_type": "SEQ_CLS", "modules_to_save": ["score"]}
    save_file(weights, staged / WEIGHTS_NAME, metadata={"format": "pt"})
    (staged / CONFIG_NAME).write_bytes(_config(peft, spec.base_id, classified))
    return adapter_digest(staged)


def _config(peft: PeftModel, base_id: str, changes: Mapping[str, Any]) -> bytes:
    """PEFT's own configuration, sorted, with the public base name: a local path would leak."""
    config = peft.peft_config["default"].to_dict()
    config |= {"base_model_name_or_path": base_id, "inference_mode": True, **changes}
    return _pretty({key: _plain(config[key]) for key in sorted(config)})


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, set | frozenset):
        return sorted(value)
    if isinstance(value, dict):
        return {key: _plain(value[key]) for key in sorted(value)}
    return value


def _pretty(value: Any) -> bytes:
    return msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n"


def _manifest(spec: TrainSpec, metrics: Metrics | None) -> Manifest:
    return Manifest(
        base=spec.base_id,
        base_fingerprint=spec.base_fingerprint,
        base_weights=spec.base_weights,
        job_id=spec.job_id,
        training_file_sha256=spec.training_sha256,
        method=spec.method,
        hyperparameters=_hyperparameters(spec),
        finetuning_type=spec.finetuning_type,
        lora=_lora(spec) if spec.finetuning_type == "lora" else None,
        training={name: getattr(spec, name) for name in _TRAINING},
        seed=spec.seed,
        parent_sha256=spec.parent_sha256,
        step=0 if metrics is None else metrics.step,
        metrics=metrics,
        versions={name: version(name) for name in _VERSIONED},
    )


def _lora(spec: TrainSpec) -> dict[str, Any]:
    return {
        "rank": spec.rank,
        "alpha": spec.alpha,
        "use_rslora": spec.use_rslora,
        "dropout": spec.dropout,
        "targets": list(spec.targets),
    }


def _hyperparameters(spec: TrainSpec) -> dict[str, float]:
    common: dict[str, float] = {
        "n_epochs": spec.n_epochs,
        "batch_size": spec.batch_size,
        "learning_rate_multiplier": spec.learning_rate_multiplier,
    }
    if spec.method in ("dpo", "kto", "orpo"):
        common["beta"] = spec.beta
    if spec.method == "kto":
        common |= {"desirable_weight": spec.desirable_weight, "undesirable_weight": spec.undesirable_weight}
    return common


def _readme(spec: TrainSpec, metrics: Metrics | None) -> str:
    step, loss = (0, None) if metrics is None else (metrics.step, metrics.full_valid_loss)
    held_out = "" if loss is None else f"\nLoss on the validation file: {loss:.4f}.\n"
    if spec.finetuning_type == "full":
        return (
            f"# {spec.base_id}, fine-tuned\n\n"
            f"Trained by job {spec.job_id}: {step} steps, every weight, seed {spec.seed}.\n{held_out}"
            "\nLoad it with `transformers.AutoModelForCausalLM.from_pretrained(folder)`.\n"
            "What it was trained on, how and with which versions stands in manifest.json.\n"
        )
    what, base = "LoRA adapter", "base_model"
    if spec.method == "reward":
        what = "Reward model: a LoRA adapter and a head"
        base = "transformers.AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)"
    return (
        f"# {what} for {spec.base_id}\n\n"
        f"Trained by job {spec.job_id}: {step} steps, rank {spec.rank}, seed {spec.seed}.\n{held_out}"
        f"\nLoad it with `peft.PeftModel.from_pretrained({base}, folder)`.\n"
        "What it was trained on, how and with which versions stands in manifest.json.\n"
    )
