"""Where what must not be lost is kept: in the data folder, or in an object store beside it (docs/storage.md).

Everything is named by the place that it has in the data folder, whichever holds it: `files/<id>`, `adapters/…`.
"""
