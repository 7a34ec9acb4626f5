"""A whole model as one GGUF file (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md), tensor by tensor."""

from __future__ import annotations

import math
from pathlib import Path

import gguf
import msgspec
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from services.trainer.standalone import ExportRefused
from services.trainer.standalone.exporting import Kind
from services.trainer.standalone.gguf_architecture import architecture_of
from services.trainer.standalone.gguf_tokenizer import describe_tokenizer
from services.trainer.standalone.source import Source
from services.trainer.standalone.weights import BaseWeights, check_float16
from shared.safetensors_header import TensorInfo

_Type = gguf.GGMLQuantizationType
_TYPES: dict[str, tuple[gguf.GGMLQuantizationType, gguf.LlamaFileType]] = {
    "f32": (_Type.F32, gguf.LlamaFileType.ALL_F32),
    "f16": (_Type.F16, gguf.LlamaFileType.MOSTLY_F16),
    "bf16": (_Type.BF16, gguf.LlamaFileType.MOSTLY_BF16),
    "q8_0": (_Type.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0),
}
_BYTES = frozenset({_Type.BF16, _Type.Q8_0})
"""Types that numpy does not have: their tensors are written as bytes."""
_EMBEDDINGS = "model.embed_tokens.weight"
_DIVISORS = "rope_freqs.weight"


class _Generation(Struct):
    eos_token_id: int | list[int] | None = None


class GgufFile:
    """A file that can be written: architecture and tokenizer have a form in GGUF."""

    def __init__(self, weights: BaseWeights, source: Source, kind: Kind) -> None:
        """Raises ExportRefused for an architecture or a tokenizer that has none."""
        self._weights = weights
        self._type, self._file_type = _TYPES[kind]
        self._architecture = architecture_of(weights, source.base)
        self._names = self._architecture.names(weights)
        self._writer = gguf.GGUFWriter(None, self._architecture.name)
        self._describe(source)
        self._announce()

    @property
    def size_bytes(self) -> int:
        """Bytes of the tensors."""
        return sum(info.nbytes for info in self._writer.tensors[0].values())

    def write(self, path: Path) -> None:
        """Write it to `path`. Raises ExportRefused, OSError."""
        writer = self._writer
        try:
            writer.write_header_to_file(path)
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            if (divisors := self._architecture.rope_divisors()) is not None:
                self._put(_DIVISORS, divisors)
            for file, stored in self._weights.files.items():
                for name, tensor in self._weights.read(file):
                    if name in self._names:
                        self._put(self._names[name], self._encoded(name, tensor, stored[name]))
        finally:
            writer.close()

    def _put(self, name: str, values: NDArray[np.generic]) -> None:
        """Write the next tensor. The writer's own way would not tell why a disk takes no more."""
        (file,) = self._writer.fout
        assert values.nbytes == self._writer.tensors[0][name].nbytes
        self._writer.write_padding(file, file.tell())
        file.write(values.data)
        self._writer.write_padding(file, values.nbytes)

    def _describe(self, source: Source) -> None:
        writer = self._writer
        rows = self._weights.tensors[_EMBEDDINGS].shape[0]
        writer.add_type("model")
        writer.add_name(source.name)
        writer.add_base_model_count(1)
        writer.add_base_model_name(0, source.base_id)
        writer.add_file_type(self._file_type)
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        writer.add_vocab_size(rows)
        self._architecture.describe(writer)
        tokenizer = _load_tokenizer(source.base)
        describe_tokenizer(writer, tokenizer, rows)
        # GGUF has two more places for what ends an answer: the end of a turn, and of a message.
        ends = _other_ends(source.base, tokenizer.eos_token_id)
        for end, add in zip(ends, (writer.add_eot_token_id, writer.add_eom_token_id), strict=False):
            add(end)

    def _announce(self) -> None:
        """Tell the writer of every tensor, in the order in which they will come."""
        if (divisors := self._architecture.rope_divisors()) is not None:
            self._writer.add_tensor_info(_DIVISORS, divisors.shape, divisors.dtype, divisors.nbytes)
        for name, info in self._weights.tensors.items():
            if name in self._names:
                kind = self._type_of(info)
                shape = gguf.quant_shape_to_byte_shape(info.shape, kind)
                size = math.prod(shape)
                if kind not in _BYTES:
                    shape = info.shape
                dtype = np.dtype(np.uint8 if kind in _BYTES else np.float32)
                self._writer.add_tensor_info(self._names[name], shape, dtype, size, raw_dtype=kind)
        self._writer.add_size_label(gguf.size_label(*self._writer.get_total_parameter_count()))

    def _type_of(self, info: TensorInfo) -> gguf.GGMLQuantizationType:
        """Vectors stay float32, as llama.cpp wants them; rows that do not divide into blocks become float16."""
        if len(info.shape) == 1:
            return _Type.F32
        block, _ = gguf.GGML_QUANT_SIZES[self._type]
        return self._type if info.shape[-1] % block == 0 else _Type.F16

    def _encoded(self, name: str, tensor: Tensor, info: TensorInfo) -> NDArray[np.generic]:
        kind = self._type_of(info)
        values = self._architecture.arranged(name, tensor.float())
        if kind in (_Type.F16, _Type.Q8_0):  # whose scales are float16, 127 times smaller than the largest value
            check_float16(name, values, scale=1 if kind == _Type.F16 else 1 / 127)
        encoded: NDArray[np.generic] = gguf.quantize(values.contiguous().numpy(), kind)
        return encoded


def _load_tokenizer(base: Path) -> PreTrainedTokenizerFast:
    """Load the base's tokenizer as training and serving do."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(base, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ExportRefused(f"the tokenizer in {base} cannot be loaded: {error}") from error
    if not tokenizer.is_fast:
        raise ExportRefused(f"the tokenizer in {base} has no tokenizer.json, from which GGUF's is made")
    return tokenizer


def _other_ends(base: Path, eos_token_id: int | None) -> list[int]:
    """Return the tokens besides the tokenizer's that end an answer, as generation_config.json lists them."""
    try:
        ends = msgspec.json.decode((base / "generation_config.json").read_bytes(), type=_Generation).eos_token_id
    except FileNotFoundError:
        return []
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ExportRefused(f"{base}: generation_config.json cannot be read: {error}") from error
    return [end for end in (ends if isinstance(ends, list) else [ends]) if end not in (None, eos_token_id)]
