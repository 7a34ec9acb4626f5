"""Where everything lies in the data folder, and how a file becomes visible whole or not at all.

DATA_DIR/
  admin.key  internal.key          0600
  key_hash.key                     0600, the secret under which the database has API keys
  folder.id                        tells this data folder from others on the same database
  selftune.toml                    optional settings
  valkey/                          the embedded database (append-only file)
  bases/<sha256>/                  base models converted here
  files/<file id>/content          uploaded bytes, beside manifest.json
  files/.partial/                  uploads on their way; safe to delete when nothing runs
  files/.unrecorded/<file id>      marks of files that may lack their record
  uploads/<upload id>/<part id>/   parts of uploads under way, each with content and manifest.json
  batches/<batch id>/              input.jsonl, results/; gone when the batch has ended
  evals/<run id>/rows.jsonl        the rows of an eval's run; gone when it has ended
  flows/<kind>/<flow id>/          what a flow keeps until it is closed
  jobs/<job id>/                   spec.json, checkpoints/, tensorboard/, train.log; for some rollouts/, reference.json,
                                   wandb/
  tokens/<key>/                    tokenised files, kept for other jobs: shared/token_cache.py
  adapters/<base>/<sha256>/        published adapters, immutable
  models/<job id>/<sha256>/        a fully fine-tuned model, immutable
  records/<family>/*.json          the registry, written again beside the database: shared/record_files.py
  compiled/                        machine code that inference compiles for itself; safe to delete
  fetching/                        what is on its way from an object store; safe to delete when nothing runs
  .copies/                         which folders an object store has, too: shared/blobs/marks.py
  logs/                            one file a service

With an object store (shared/blobs), files/, uploads/, batches/, evals/, flows/, jobs/, adapters/ and models/ are copies
of what it has, and records/ is there alone.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path

from shared import ids
from shared.errors import InvalidRequest

ASIDE = ".partial-"
"""Stands before the name of a folder that is hidden until it is deleted or put back."""


class Paths:
    """The layout above, rooted at one folder."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.admin_key = home / "admin.key"
        self.internal_key = home / "internal.key"
        self.key_secret = home / "key_hash.key"
        self.folder_id = home / "folder.id"
        self.valkey = home / "valkey"
        self.bases = home / "bases"
        self.files = home / "files"
        self.partial = home / "files" / ".partial"
        self.unrecorded = home / "files" / ".unrecorded"
        self.uploads = home / "uploads"
        self.batches = home / "batches"
        self.evals = home / "evals"
        self.flows = home / "flows"
        self.jobs = home / "jobs"
        self.tokens = home / "tokens"
        self.adapters = home / "adapters"
        self.models = home / "models"
        self.records = home / "records"
        self.compiled = home / "compiled"
        self.fetching = home / "fetching"
        self.copies = home / ".copies"
        self.logs = home / "logs"

    def prepare(self) -> None:
        """Create the folders; the root is readable by its owner alone, since it holds keys and data."""
        self.home.mkdir(parents=True, exist_ok=True, mode=0o700)
        folders = (
            self.valkey,
            self.bases,
            self.partial,
            self.unrecorded,
            self.uploads,
            self.batches,
            self.evals,
            self.flows,
            self.jobs,
            self.tokens,
            self.adapters,
            self.models,
            self.records,
            self.fetching,
            self.logs,
        )
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)

    def file_folder(self, file_id: str) -> Path:
        return self.files / _name(file_id)

    def file_content(self, file_id: str) -> Path:
        return self.file_folder(file_id) / "content"

    def unrecorded_mark(self, file_id: str) -> Path:
        return self.unrecorded / _name(file_id)

    def upload_folder(self, upload_id: str) -> Path:
        return self.uploads / _name(upload_id)

    def upload_part(self, upload_id: str, part_id: str) -> Path:
        return self.upload_folder(upload_id) / _name(part_id)

    def batch_folder(self, batch_id: str) -> Path:
        return self.batches / _name(batch_id)

    def batch_input(self, batch_id: str) -> Path:
        return self.batch_folder(batch_id) / "input.jsonl"

    def batch_results(self, batch_id: str) -> Path:
        return self.batch_folder(batch_id) / "results"

    def eval_folder(self, run_id: str) -> Path:
        return self.evals / _name(run_id)

    def eval_rows(self, run_id: str) -> Path:
        return self.eval_folder(run_id) / "rows.jsonl"

    def flows_of(self, kind: str) -> Path:
        return self.flows / _name(kind)

    def flow_folder(self, kind: str, flow_id: str) -> Path:
        return self.flows_of(kind) / _name(flow_id)

    def job_folder(self, job_id: str) -> Path:
        return self.jobs / _name(job_id)

    def adapter_folder(self, base: str, digest: str) -> Path:
        return self.adapters / slug(base) / _name(digest)

    def whole_model_folder(self, job_id: str) -> Path:
        """Where the whole model of a job lies, in a folder named by its digest."""
        return self.models / _name(job_id)

    def token_folder(self, name: str) -> Path:
        return self.tokens / _name(name)

    def relative(self, path: Path) -> str:
        """Return `path` as it is stored: relative to the data folder, so that the folder may move."""
        return path.relative_to(self.home).as_posix()


def slug(name: str) -> str:
    """Turn a model id into one path component: slashes become `--`, as the hub's cache does it."""
    return _name(name.replace("/", "--").replace(":", "--"))


def _name(part: str) -> str:
    if part in ("", ".", "..") or "/" in part or "\0" in part:
        raise ValueError(f"not a file name: {part!r}")
    return part


def fsync_folder(folder: Path) -> None:
    """Make a rename inside `folder` survive a power cut (fsync(2) on the directory)."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomic(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Write a file that other processes see whole or not at all: temporary name, fsync, rename, fsync of the folder."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with os.fdopen(descriptor, "wb") as handle:
            handle.write(data)
            handle.flush()
            os.fsync(handle.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    fsync_folder(path.parent)


def write_together(files: Mapping[Path, bytes], *, mode: int = 0o644) -> None:
    """Do the same with many files, which costs far less than one after the other: a folder is forced to disk once.

    Each is whole or as it was before; a process that dies may have replaced some.
    """
    drafts: dict[Path, Path] = {}
    try:
        for path, data in files.items():
            drafts[path] = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
            descriptor = os.open(drafts[path], os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
            with os.fdopen(descriptor, "wb") as handle:
                handle.write(data)
        for draft in drafts.values():
            _fsync_file(draft)
        for path, draft in drafts.items():
            draft.replace(path)
    except BaseException:
        for draft in drafts.values():
            draft.unlink(missing_ok=True)
        raise
    for folder in {path.parent for path in files}:
        fsync_folder(folder)


def _fsync_file(path: Path) -> None:
    with path.open("rb") as handle:
        os.fsync(handle.fileno())


def seal_folder(folder: Path) -> None:
    """Make what is in a folder readable for everybody (0644, 0755) and survive a power cut."""
    for path in folder.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
        if path.is_file():
            _fsync_file(path)
        else:
            fsync_folder(path)
    folder.chmod(0o755)
    fsync_folder(folder)


def publish_folder(staged: Path, final: Path) -> None:
    """Move a finished folder to its place: fsync each file, chmod 0644/0755, rename.

    When `final` exists already it holds the same content (its name is its hash), and the staged copy is removed. The
    folder's time of change is new either way: what is deleted for its age stays for a while.
    """
    seal_folder(staged)
    final.parent.mkdir(parents=True, exist_ok=True)
    os.utime(staged)
    if not _moved(staged, final):
        shutil.rmtree(staged)
    fsync_folder(final.parent)


def _moved(staged: Path, final: Path) -> bool:
    """Rename a folder; False if the place was taken, after renewing the time of what is there."""
    while True:
        try:
            staged.rename(final)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise
        else:
            return True
        try:
            os.utime(final)
        except FileNotFoundError:  # deleted between the two
            continue
        return False


def folder_bytes(folder: Path) -> int:
    """Return how many bytes the files in a folder have."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def remove_folder(folder: Path) -> None:
    """Delete a folder that others take for whole as long as it is there; nothing happens if it is not.

    A `.partial-…` beside it may be left by a process that dies on the way.
    """
    doomed = folder.with_name(f".partial-{secrets.token_hex(4)}")
    try:
        folder.rename(doomed)
    except FileNotFoundError:
        return
    shutil.rmtree(doomed, ignore_errors=True)


def read_or_create_secret(path: Path, make: str) -> tuple[str, bool]:
    """Return the secret kept in `path` (0600), writing `make` there first if there is none; and whether it is new.

    The file appears with its content or not at all. Raises InvalidRequest for an empty one: it would open every door.
    """
    is_new = False
    if not path.exists():
        draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        write_atomic(draft, f"{make}\n".encode(), mode=0o600)
        try:
            path.hardlink_to(draft)  # unlike a rename, this does not replace what another process wrote meanwhile
            is_new = True
        except FileExistsError:
            is_new = False
        finally:
            draft.unlink()
    secret = path.read_text(encoding="utf-8").strip()
    if not secret:
        raise InvalidRequest(f"{path} is empty; delete it to have a new key made")
    return secret, is_new


def internal_key(configured: str, paths: Paths) -> str:
    """Return the key between gateway, trainer and inference: the configured one, else the one kept in the data folder.

    Whoever asks first makes it.
    """
    return configured or read_or_create_secret(paths.internal_key, ids.new_token())[0]


def key_secret(configured: str, paths: Paths) -> str:
    """Return the secret under which API keys are hashed: the configured one, else the one kept in the data folder."""
    return configured or read_or_create_secret(paths.key_secret, ids.new_token() + ids.new_token())[0]


def folder_id(paths: Paths) -> str:
    """Return what tells this data folder from others on the same database; it moves with the folder."""
    return read_or_create_secret(paths.folder_id, ids.new_token())[0]
