"""The base model: having it ready, and telling its weights from others."""
