"""A fine-tuned model as files of its own, which need this server no more: `python -m services.trainer.standalone`.

    __main__.py         the command behind `selftune export`
    source.py           from a model's name or folder to its adapter and its base
    adapter.py          a LoRA adapter as products to be added to weights
    weights.py          the base's tensors, one after the other, with the adapter merged in
    whole_model.py      them as a folder for transformers and vLLM
    trained.py          the same of a model in memory whose every weight was trained
    gguf_file.py        them as one GGUF file; gguf_architecture.py and gguf_tokenizer.py say what it tells of itself
    exporting.py        what is asked for, and in which form it comes
    placing.py          a result appears whole or not at all

Nothing is fetched from a network, and of what is in files no more than one tensor is in memory at a time.
"""

from shared.errors import SelftuneError


class ExportRefused(SelftuneError):
    """The model cannot be exported as asked; the message says why, and what can be done instead."""
