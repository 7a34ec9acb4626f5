"""Chat templates and tokenizers as the families of models have them, in short: what they write, and how text is cut."""

from __future__ import annotations

from typing import Any, NamedTuple

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from tests.unit.trainer.tiny import CHATML, HEADERS, PLAIN

_CALLS = "{% for call in m.tool_calls or [] %}<tool_call>\n{{ call.function | tojson }}\n</tool_call>\n{% endfor %}"
QWEN = (
    "{% if tools %}<|im_start|>system\n"
    "{{ messages[0].content if messages[0].role == 'system' else 'You are helpful.' }}\n# Tools\n"
    "{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}<|im_end|>\n"
    "{% elif messages[0].role != 'system' %}<|im_start|>system\nYou are helpful.<|im_end|>\n{% endif %}"
    "{% for m in messages %}"
    "{% if m.role == 'tool' %}<|im_start|>user\n<tool_response>\n{{ m.content }}\n</tool_response><|im_end|>\n"
    "{% elif not (tools and loop.first and m.role == 'system') %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    + _CALLS
    + "<|im_end|>\n{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n"
    "{{ m['content'] | trim }}" + _CALLS + "<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{{ m.content | trim }}<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %} {{ m.content }}{{ eos_token }}"
    "{% else %}[INST] {{ m.content }} [/INST]{% endif %}{% endfor %}"
)
ZEPHYR = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)

_GPT2 = None
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_CORPUS = [
    "the cat and the dog are animals, aren't they? 12 345",
    "system user assistant model tool You are helpful.",
] * 9


class Family(NamedTuple):
    template: str
    special: tuple[str, ...]
    eos: str
    bos: str | None = None
    words: str | None = _GPT2
    """The pattern by which text is cut, GPT-2's if None; "metaspace" stands for sentencepiece's way."""
    plain_added: tuple[str, ...] = ()
    """Added tokens that are not special."""


_TOOLS = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")
_CHATML = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
FAMILIES = {
    "smollm": Family(CHATML, _CHATML, "<|im_end|>"),
    "qwen": Family(QWEN, _CHATML, "<|im_end|>", words=_QWEN2, plain_added=_TOOLS),
    "llama": Family(
        LLAMA, ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"), "<|eot_id|>", "<|begin|>", _LLAMA3
    ),
    "gemma": Family(GEMMA, ("<start_of_turn>", "<end_of_turn>", "<eos>"), "<eos>", "<bos>", "metaspace"),
    "mistral": Family(MISTRAL, ("[INST]", "[/INST]", "</s>"), "</s>", "<s>", "metaspace"),
    "headers": Family(HEADERS, ("<|start|>", "<|end|>", "<|eot|>"), "<|eot|>"),
    "zephyr": Family(ZEPHYR, ("</s>",), "</s>", "<s>"),
    "unmarked": Family(PLAIN, ("<|endoftext|>",), "<|endoftext|>"),
    "nested": Family(CHATML, (*_CHATML, "<|im_end|>\n"), "<|im_end|>"),
}


def family_tokenizer(name: str, **changes: Any) -> PreTrainedTokenizerFast:
    """Train a tokenizer of some 400 tokens that works as that family's; `changes` go to its first added token."""
    family = FAMILIES[name]
    tokenizer = Tokenizer(models.BPE())
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if family.words == "metaspace":
        tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
        tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="first")])
        alphabet = [chr(code) for code in range(32, 127)]
    elif family.words is None:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
    else:
        tokenizer.normalizer = normalizers.NFC() if name == "qwen" else None
        split = pre_tokenizers.Split(Regex(family.words), "isolated")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
        )
        tokenizer.decoder = decoders.ByteLevel()
    special = [*family.special, *([family.bos] if family.bos else [])]
    first = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))] if family.words == "metaspace" else []
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=[*first, *special], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(_CORPUS, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=family.eos, bos_token=family.bos)
    fast.add_special_tokens({"additional_special_tokens": special})
    fast.add_tokens([AddedToken(text, normalized=False, special=False) for text in family.plain_added])
    if changes:
        fast.add_tokens([AddedToken(family.special[0], special=True, normalized=False, **changes)], special_tokens=True)
    fast.chat_template = family.template
    return fast
