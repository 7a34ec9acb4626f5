"""Of batches and uploads in parts: was every request answered once, and every upload brought to its one end?"""

from __future__ import annotations

from tests.faults.asking import Asker
from tests.faults.ledger import BATCH_ENDS, Answer, KnownBatch, KnownUpload, Ledger


def judge_batches(asker: Asker, ledger: Ledger) -> None:
    """Each was made once and has one end; each of its requests is on one line of one of its files."""
    found = {batch["id"]: batch for batch in asker.all("/batches")}
    tags = [batch["metadata"]["tag"] for batch in found.values()]
    if len(set(tags)) != len(tags):
        ledger.blame("a batch was made twice:", sorted(tag for tag in tags if tags.count(tag) > 1))
    for tag in set(tags) - {batch.tag for batch in ledger.batches.values()} - ledger.maybe_batches:
        ledger.blame("a batch that nobody made:", tag)
    for batch_id, known in ledger.batches.items():
        if batch_id not in found:
            ledger.blame("a batch is missing:", batch_id)
        else:
            ledger.note_batch(found[batch_id], known.shown)
            _judge_batch(asker, ledger, found[batch_id], known)


def _judge_batch(asker: Asker, ledger: Ledger, batch: Answer, known: KnownBatch) -> None:
    status = batch["status"]
    if status not in (("completed", "cancelled") if known.cancel_asked else ("completed",)):
        ledger.blame("a batch has another end than anybody gave it:", batch)
    if known.cancelled and status != "cancelled":
        ledger.blame("a cancelled batch went on:", batch)
    if status not in BATCH_ENDS:
        return
    output, error = asker.lines(batch["output_file_id"]), asker.lines(batch["error_file_id"])
    was_begun = batch["in_progress_at"] is not None
    asked = list(known.asked) if was_begun else []
    counts = {"total": len(asked), "completed": len(output), "failed": len(error)}
    if batch["request_counts"] != counts:
        ledger.blame("a batch counts wrongly:", batch, counts)
    answered = [[line["custom_id"] for line in lines] for lines in (output, error)]
    if sorted(answered[0] + answered[1]) != sorted(asked):
        ledger.blame("not every request once:", batch, answered)
    if any(ids != [one for one in asked if one in ids] for ids in answered):
        ledger.blame("not in the order of the input:", batch, answered)
    for line in output:
        if not known.asked.get(line["custom_id"]) or not _is_answer(line):
            ledger.blame("no answer in an output file:", batch["id"], line)
    for line in error:
        if not _is_due_error(line, is_there=known.asked.get(line["custom_id"], False), status=status):
            ledger.blame("a request failed:", batch["id"], line)


def _is_answer(line: Answer) -> bool:
    response = line["response"]
    return bool(response["status_code"] == 200 and response["body"]["usage"]["completion_tokens"] >= 1)


def _is_due_error(line: Answer, *, is_there: bool, status: str) -> bool:
    """Whether a request had to fail: for want of its model, or since the batch was cancelled before."""
    if line["response"] is None:
        return bool(status == "cancelled" and line["error"]["code"] == "batch_cancelled")
    return not is_there and line["response"]["status_code"] == 404


def judge_uploads(asker: Asker, ledger: Ledger, *, are_expired: bool) -> None:
    """Completing each again tells how it ended. `are_expired`: the time of those that were left lying is over."""
    for upload_id, known in ledger.uploads.items():
        again = asker.post(f"/uploads/{upload_id}/complete", {"part_ids": known.parts or ["part_none"]})
        is_cancelled = "is cancelled" in again.text
        if again.status_code == 200:
            _judge_completed(ledger, again.json(), known)
        elif again.status_code != 400 or again.json()["error"]["code"] != "upload_not_pending":
            if are_expired:
                ledger.blame("an upload has no end:", upload_id, again.status_code, again.text)
        elif known.file_id or (known.cancelled and not is_cancelled) or (is_cancelled and not known.cancel_asked):
            ledger.blame("an upload left its end:", upload_id, known, again.text)


def _judge_completed(ledger: Ledger, upload: Answer, known: KnownUpload) -> None:
    if upload["status"] != "completed" or not known.parts or known.cancelled:
        ledger.blame("an upload that nobody completed:", upload, known)
    if not known.file_id:
        return
    is_deleted = "file" not in upload
    if is_deleted and not ledger.files[known.file_id].delete_asked:
        ledger.blame("an upload has lost its file:", upload)
    elif not is_deleted and upload["file"]["id"] != known.file_id:
        ledger.blame("an upload has made two files:", upload, known)
