"""Every Redis key: name, type, content, lifetime. Nothing else builds a key.

| key                              | type   | content                                        | lifetime       |
| -------------------------------- | ------ | ---------------------------------------------- | -------------- |
| selftune:api_key:{digest}        | string | KeyRecord; digests are shared/key_hash.py's    | until revoked  |
| selftune:api_key_used:{digest}   | string | Unix time of its last use, to the minute       | until revoked  |
| selftune:key_digest:{id}         | string | the digest of its value                        | until revoked  |
| selftune:former_key:{digest}     | string | "{id} {t}": a value replaced or revoked, and   | 30 days        |
|                                  |        | the Unix time until which it still works       |                |
| selftune:key_check               | string | KeyHash.check of the secret that digests have  | for ever       |
| selftune:built_in_keys           | hash   | data folder → id of the key in its admin.key   | for ever       |
| selftune:admin_keys              | zset   | ids of admin keys by order of creation         | for ever       |
| selftune:project:{id}            | string | ProjectRecord                                  | for ever       |
| selftune:projects                | zset   | project ids by order of creation               | for ever       |
| selftune:project_keys:{project}  | zset   | ids of its keys by order of creation           | for ever       |
| selftune:project_bytes:{project} | string | bytes that it keeps, see shared/store/storage  | for ever       |
| selftune:account:{id}            | string | ServiceAccountRecord                           | until deleted  |
| selftune:accounts:{project}      | zset   | service account ids by order of creation       | for ever       |
| selftune:account_keys:{id}       | set    | ids of a service account's keys                | until deleted  |
| selftune:request_bucket:{id}     | hash   | level, at: requests left to a key or project   | until full     |
| selftune:token_bucket:{id}       | hash   | level, at: tokens left to a key or project     | until full     |
| selftune:file:{id}               | string | FileRecord                                     | until deleted  |
| selftune:file_batches:{id}       | set    | ids of batches and eval runs that hold it      | until they end |
| selftune:files:{project}         | zset   | file ids by order of creation                  | for ever       |
| selftune:expiring_files          | zset   | file ids by the time they expire               | until swept    |
| selftune:upload:{id}             | hash   | record, received: bytes, counted: of project's | a day past it  |
| selftune:upload_parts:{id}       | hash   | part id → PartRecord                           | until swept    |
| selftune:upload_lock:{id}        | string | token of the request that completes it         | 30 s           |
| selftune:uploads                 | zset   | upload ids by the time they expire             | until swept    |
| selftune:job:{id}                | hash   | record, version, nonces, turn, owner, claims   | for ever       |
| selftune:jobs:{project}          | zset   | job ids by order of creation                   | for ever       |
| selftune:active_jobs             | set    | ids of jobs that are not at their end          | for ever       |
| selftune:project_jobs:{project}  | set    | those of one project                           | for ever       |
| selftune:outcomes                | zset   | "{id} {status}" of ended jobs and batches, 0   | until told     |
| selftune:turns:{priority}        | hash   | whose job is next, see the prelude of scripts  | for ever       |
| selftune:idempotency:{digest}    | string | IdempotencyRecord                              | one day        |
| selftune:job_events:{id}         | stream | event: Event without its id                    | with the job   |
| selftune:job_checkpoints:{id}    | list   | Checkpoint, oldest first                       | with the job   |
| selftune:job_lease:{id}          | string | token of the worker that owns the job          | lease_ttl_s    |
| selftune:batch:{id}              | hash   | record, version, owner, claims, input_bytes    | for ever       |
| selftune:batches:{project}       | zset   | batch ids by order of creation                 | for ever       |
| selftune:active_batches          | zset   | ids of batches that are not at their end       | for ever       |
| selftune:batch_lease:{id}        | string | token of the api process that works on it      | lease_ttl_s    |
| selftune:eval:{id}               | string | EvalRecord                                     | until deleted  |
| selftune:evals:{project}         | zset   | eval ids by order of creation                  | for ever       |
| selftune:changed_evals:{project} | zset   | the same by order of their last change         | for ever       |
| selftune:eval_run:{id}           | hash   | record, source, version, owner, claims, bytes: | until deleted  |
|                                  |        | counted, result_bytes, file_bytes (of a file)  |                |
| selftune:eval_runs:{eval}        | zset   | run ids by order of creation                   | with the eval  |
| selftune:active_eval_runs        | zset   | ids of runs that are not at their end          | for ever       |
| selftune:active_runs:{project}   | set    | those of one project                           | for ever       |
| selftune:eval_run_lease:{id}     | string | token of the api process that works on it      | lease_ttl_s    |
| selftune:eval_tally:{run}        | hash   | counts, by the names in shared/eval_records    | with the run   |
| selftune:eval_items:{run}        | hash   | row's number → OutputItem                      | eval_item_days |
| selftune:eval_marks:{run}        | string | a byte for each row, see Mark, or 0 if open    | eval_item_days |
| selftune:eval_drafts:{run}       | hash   | row's number → Draft: answered, not all judged | until it ended |
| selftune:ab_votes:{run}          | hash   | "{row's number} {voter}" → VoteRecord          | eval_item_days |
| selftune:flow:{kind} {id}        | hash   | record, version, owner, claims                 | until deleted  |
| selftune:flows:{kind} {project}  | zset   | flow ids by order of creation                  | for ever       |
| selftune:active_flows:{kind}     | zset   | ids of flows that are not closed               | for ever       |
| selftune:flow_lease:{kind} {id}  | string | token of the api process that works on it      | lease_ttl_s    |
| selftune:active_project_flows:{kind} {project} | set | ids of flows not at their end, of one project | for ever |
| selftune:sequence                | string | counter behind the order of creation           | for ever       |
| selftune:bases                   | hash   | base id → BaseRecord                           | for ever       |
| selftune:adapter:{name}          | string | AdapterRecord                                  | until deleted  |
| selftune:adapters:{base}         | set    | names of the adapters that should exist        | for ever       |
| selftune:models:{project}        | set    | names of the adapters that clients see         | for ever       |
| selftune:permissions:{model}     | hash   | project → PermissionRecord                     | with the model |
| selftune:model_settings:{model}  | hash   | record, allowed_keys, revision: counter        | with the model |
| selftune:shared_models:{project} | set    | names of other projects' models it may use     | for ever       |
| selftune:adapter_numbers         | string | counter of the engines' adapter numbers        | for ever       |
| selftune:pinned_adapters         | set    | names of the adapters to keep in memory        | until unpinned |
| selftune:retired_adapters        | zset   | digests of deleted adapters by Unix time       | until swept    |
| selftune:adapter_changes         | stream | change: AdapterChange, about 10,000 kept       | for ever       |
| selftune:adapter_uses:{base}     | zset   | adapter names by use, fading                   | for ever       |
| selftune:standing:{name}         | hash   | replica id → Residency                         | one day        |
| selftune:replicas                | zset   | replica ids by time of their last heartbeat    | for ever       |
| selftune:replica:{id}            | string | ReplicaRecord                                  | a few seconds  |
| selftune:workers                 | zset   | worker ids by time of their last heartbeat     | for ever       |
| selftune:worker:{id}             | string | WorkerRecord                                   | a few seconds  |
| selftune:webhook:{id}            | string | WebhookRecord                                  | until deleted  |
| selftune:webhooks:{project}      | zset   | webhook endpoints by order of creation         | for ever       |
| selftune:webhook_delivery:{id}   | string | DeliveryRecord                                 | until arrived  |
| selftune:webhook_queue           | zset   | delivery ids by time of their next try         | for ever       |
| selftune:completion:{id}         | hash   | project, model, metadata, body, messages       | stored_completion_days |
| selftune:completions:{project}   | zset   | ids of stored completions by order of creation | for ever       |
| selftune:response:{id}           | hash   | project, previous, body, items                 | stored_completion_days |
|                                  |        | both have `counted`: bytes, of the project's   |                |
| selftune:preference:{id}         | hash   | project, record, counted: bytes                | until deleted  |
| selftune:preferences:{project}   | zset   | preference ids by order of creation            | for ever       |
| selftune:answers:{project}       | zset   | "{id} {bytes}" of both by the time they expire | for ever       |
| selftune:place:{list} {id}       | string | place that a removed id had in a paged list    | one hour       |
| selftune:alias:{project} {name}  | string | AliasRecord                                    | until deleted  |
| selftune:aliases:{project}       | zset   | alias names by order of creation               | for ever       |
| selftune:alias_history:{uid}     | list   | AliasRevision, newest first, 200 at most       | with the alias |
| selftune:alias_traffic:{uid} {t} | hash   | counts of the 10 s from t, see alias_traffic   | 70 minutes     |
| selftune:shadow_pairs:{uid}      | stream | pair: StoredPair, keep_pairs at most           | keep_s         |
| selftune:scoring:{id}            | hash   | record, model, takes: a request to a reward    | its timeout    |
|                                  |        | model                                          |                |
| selftune:scorings                | zset   | their ids by the time they may be taken        | for ever       |
| selftune:scoring_replies:{asker} | stream | reply: ScoringReply to one process             | 10 minutes     |
| selftune:gate_runs:{uid}         | hash   | model → GateRun, the newest of each            | with the alias |
| selftune:alias_due_samples:{uid} | list   | DueSample: kept and not graded, oldest first   | with monitor   |
| selftune:alias_samples:{uid}     | list   | Sample of late, drawn, newest first, bounded   | with monitor   |
| selftune:alias_first_samples:{uid} | list | Sample of the baseline, drawn, oldest first    | with monitor   |
| selftune:alias_seen_samples:{uid} | hash  | "first" or a window's start → samples graded   | with monitor   |
| selftune:alias_training:{uid}    | string | TrainingTraits of the model's training file    | with monitor   |
| selftune:alias_hour:{uid} {t}    | string | how many were sampled in the hour t            | two hours      |
| selftune:alias_windows:{uid}     | list   | QualityWindow, newest first, 200 at most       | with the alias |
| selftune:alias_proposals:{uid}   | hash   | id → ProposalRecord, 100 at most               | with the alias |
| selftune:tended_aliases          | set    | "{project} {name}" of those with a monitor or  | for ever       |
|                                  |        | a gate that is rechecked                       |                |
| selftune:tending_lock            | string | token of the api process that tends them       | 30 s           |
| selftune:usage:{project} {day}   | hash   | "{metric} {model}" → count, see store/usage    | 400 days       |
| selftune:training_pace:{base}    | hash   | sums over jobs that succeeded, see store/usage | for ever       |
| selftune:schema                  | hash   | id, version, applied … : see shared/store/schema | for ever     |
| selftune:schema_lock             | string | token of the process that migrates             | 30 s           |
| selftune:recorder_lock           | string | token of the api process that writes records/  | 30 s           |
| selftune:audit                   | stream | entry: AuditRecord, about 100,000 kept         | for ever       |
| selftune:audit_pending           | hash   | token → AuditRecord of what is under way, or   | until it ends, |
|                                  |        | "settled {t}"                                  | a week from t  |
| arq:*                            | -      | the queues, written by arq                     | arq's          |

No key is another one's prefix plus a colon: ids come from clients, and must not reach a key of another type.
Records are JSON, so that a person can read them with valkey-cli.
"""

from __future__ import annotations

_ROOT = "selftune"

OUTCOMES = f"{_ROOT}:outcomes"
SEQUENCE = f"{_ROOT}:sequence"
ACTIVE_JOBS = f"{_ROOT}:active_jobs"
ACTIVE_BATCHES = f"{_ROOT}:active_batches"
ACTIVE_EVAL_RUNS = f"{_ROOT}:active_eval_runs"
BASES = f"{_ROOT}:bases"
ADAPTER_NEXT_ID = f"{_ROOT}:adapter_numbers"
ADAPTER_CHANGES = f"{_ROOT}:adapter_changes"
PINNED_ADAPTERS = f"{_ROOT}:pinned_adapters"
RETIRED_ADAPTERS = f"{_ROOT}:retired_adapters"
REPLICAS = f"{_ROOT}:replicas"
EXPIRING_FILES = f"{_ROOT}:expiring_files"
UPLOADS = f"{_ROOT}:uploads"
WORKERS = f"{_ROOT}:workers"
WEBHOOK_QUEUE = f"{_ROOT}:webhook_queue"
PROJECTS = f"{_ROOT}:projects"
ADMIN_KEYS = f"{_ROOT}:admin_keys"
AUDIT = f"{_ROOT}:audit"
AUDIT_PENDING = f"{_ROOT}:audit_pending"
KEY_CHECK = f"{_ROOT}:key_check"
BUILT_IN_KEYS = f"{_ROOT}:built_in_keys"
SCORINGS = f"{_ROOT}:scorings"
SCHEMA = f"{_ROOT}:schema"
SCHEMA_LOCK = f"{_ROOT}:schema_lock"
RECORDER_LOCK = f"{_ROOT}:recorder_lock"
TENDED_ALIASES = f"{_ROOT}:tended_aliases"
TENDING_LOCK = f"{_ROOT}:tending_lock"
EVERYTHING = f"{_ROOT}:*"
"""Pattern of every key of ours."""


def family(key: str) -> str:
    """Return what stands behind `selftune:`, up to the next colon: the table's first column, without ids."""
    return key.split(":", 2)[1]


def api_key(digest: str) -> str:
    return f"{_ROOT}:api_key:{digest}"


def file(file_id: str) -> str:
    return f"{_ROOT}:file:{file_id}"


def file_batches(file_id: str) -> str:
    return f"{_ROOT}:file_batches:{file_id}"


def files(project: str) -> str:
    return f"{_ROOT}:files:{project}"


def upload(upload_id: str) -> str:
    return f"{_ROOT}:upload:{upload_id}"


def upload_parts(upload_id: str) -> str:
    return f"{_ROOT}:upload_parts:{upload_id}"


def upload_lock(upload_id: str) -> str:
    return f"{_ROOT}:upload_lock:{upload_id}"


def project_jobs(project: str) -> str:
    return f"{_ROOT}:project_jobs:{project}"


def turns(priority: str) -> str:
    return f"{_ROOT}:turns:{priority}"


def idempotency(digest: str) -> str:
    return f"{_ROOT}:idempotency:{digest}"


def job(job_id: str) -> str:
    return f"{_ROOT}:job:{job_id}"


def jobs(project: str) -> str:
    return f"{_ROOT}:jobs:{project}"


def job_events(job_id: str) -> str:
    return f"{_ROOT}:job_events:{job_id}"


def job_checkpoints(job_id: str) -> str:
    return f"{_ROOT}:job_checkpoints:{job_id}"


def job_lease(job_id: str) -> str:
    return f"{_ROOT}:job_lease:{job_id}"


def batch(batch_id: str) -> str:
    return f"{_ROOT}:batch:{batch_id}"


def batches(project: str) -> str:
    return f"{_ROOT}:batches:{project}"


def batch_lease(batch_id: str) -> str:
    return f"{_ROOT}:batch_lease:{batch_id}"


def eval_(eval_id: str) -> str:
    return f"{_ROOT}:eval:{eval_id}"


def evals(project: str) -> str:
    return f"{_ROOT}:evals:{project}"


def changed_evals(project: str) -> str:
    return f"{_ROOT}:changed_evals:{project}"


def eval_run(run_id: str) -> str:
    return f"{_ROOT}:eval_run:{run_id}"


def eval_runs(eval_id: str) -> str:
    return f"{_ROOT}:eval_runs:{eval_id}"


def active_runs(project: str) -> str:
    return f"{_ROOT}:active_runs:{project}"


def eval_run_lease(run_id: str) -> str:
    return f"{_ROOT}:eval_run_lease:{run_id}"


def eval_tally(run_id: str) -> str:
    return f"{_ROOT}:eval_tally:{run_id}"


def eval_items(run_id: str) -> str:
    return f"{_ROOT}:eval_items:{run_id}"


def eval_marks(run_id: str) -> str:
    return f"{_ROOT}:eval_marks:{run_id}"


def eval_drafts(run_id: str) -> str:
    return f"{_ROOT}:eval_drafts:{run_id}"


def flow(kind: str, flow_id: str) -> str:
    """No kind holds a space."""
    return f"{_ROOT}:flow:{kind} {flow_id}"


def flows(kind: str, project: str) -> str:
    return f"{_ROOT}:flows:{kind} {project}"


def active_flows(kind: str) -> str:
    return f"{_ROOT}:active_flows:{kind}"


def active_project_flows(kind: str, project: str) -> str:
    return f"{_ROOT}:active_project_flows:{kind} {project}"


def flow_lease(kind: str, flow_id: str) -> str:
    return f"{_ROOT}:flow_lease:{kind} {flow_id}"


def ab_votes(run_id: str) -> str:
    return f"{_ROOT}:ab_votes:{run_id}"


def adapter(name: str) -> str:
    return f"{_ROOT}:adapter:{name}"


def adapters(base: str) -> str:
    return f"{_ROOT}:adapters:{base}"


def models(project: str) -> str:
    return f"{_ROOT}:models:{project}"


def permissions(model: str) -> str:
    return f"{_ROOT}:permissions:{model}"


def model_settings(model: str) -> str:
    return f"{_ROOT}:model_settings:{model}"


def shared_models(project: str) -> str:
    return f"{_ROOT}:shared_models:{project}"


def residency(name: str) -> str:
    return f"{_ROOT}:standing:{name}"


def adapter_uses(base: str) -> str:
    return f"{_ROOT}:adapter_uses:{base}"


def replica(replica_id: str) -> str:
    return f"{_ROOT}:replica:{replica_id}"


def worker(worker_id: str) -> str:
    return f"{_ROOT}:worker:{worker_id}"


def webhook(endpoint_id: str) -> str:
    return f"{_ROOT}:webhook:{endpoint_id}"


def webhooks(project: str) -> str:
    return f"{_ROOT}:webhooks:{project}"


def webhook_delivery(delivery_id: str) -> str:
    return f"{_ROOT}:webhook_delivery:{delivery_id}"


def key_used(digest: str) -> str:
    return f"{_ROOT}:api_key_used:{digest}"


def former_key(digest: str) -> str:
    return f"{_ROOT}:former_key:{digest}"


def key_digest(key_id: str) -> str:
    return f"{_ROOT}:key_digest:{key_id}"


def project(project_id: str) -> str:
    return f"{_ROOT}:project:{project_id}"


def project_keys(project: str) -> str:
    return f"{_ROOT}:project_keys:{project}"


def project_bytes(project: str) -> str:
    return f"{_ROOT}:project_bytes:{project}"


def account(account_id: str) -> str:
    return f"{_ROOT}:account:{account_id}"


def accounts(project: str) -> str:
    return f"{_ROOT}:accounts:{project}"


def account_keys(account_id: str) -> str:
    return f"{_ROOT}:account_keys:{account_id}"


def request_bucket(owner_id: str) -> str:
    return f"{_ROOT}:request_bucket:{owner_id}"


def token_bucket(owner_id: str) -> str:
    return f"{_ROOT}:token_bucket:{owner_id}"


def completion(completion_id: str) -> str:
    return f"{_ROOT}:completion:{completion_id}"


def completions(project: str) -> str:
    return f"{_ROOT}:completions:{project}"


def preference(preference_id: str) -> str:
    return f"{_ROOT}:preference:{preference_id}"


def preferences(project: str) -> str:
    return f"{_ROOT}:preferences:{project}"


def place(listing: str, member: str) -> str:
    """`listing` is the key of the paged list; it holds no space, so that no id reaches another list's places."""
    return f"{_ROOT}:place:{listing.removeprefix(f'{_ROOT}:')} {member}"


def response(response_id: str) -> str:
    return f"{_ROOT}:response:{response_id}"


def answers(project: str) -> str:
    """Return the key of the stored completions and responses that count towards a project's storage."""
    return f"{_ROOT}:answers:{project}"


def alias(project: str, name: str) -> str:
    """No project's id holds a space."""
    return f"{_ROOT}:alias:{project} {name}"


def aliases(project: str) -> str:
    return f"{_ROOT}:aliases:{project}"


def alias_history(uid: str) -> str:
    return f"{_ROOT}:alias_history:{uid}"


def alias_traffic(uid: str, slot: int) -> str:
    return f"{_ROOT}:alias_traffic:{uid} {slot}"


def shadow_pairs(uid: str) -> str:
    return f"{_ROOT}:shadow_pairs:{uid}"


def scoring(request_id: str) -> str:
    return f"{_ROOT}:scoring:{request_id}"


def scoring_replies(asker: str) -> str:
    return f"{_ROOT}:scoring_replies:{asker}"


def gate_runs(uid: str) -> str:
    return f"{_ROOT}:gate_runs:{uid}"


def alias_due_samples(uid: str) -> str:
    return f"{_ROOT}:alias_due_samples:{uid}"


def alias_samples(uid: str) -> str:
    return f"{_ROOT}:alias_samples:{uid}"


def alias_first_samples(uid: str) -> str:
    return f"{_ROOT}:alias_first_samples:{uid}"


def alias_seen_samples(uid: str) -> str:
    return f"{_ROOT}:alias_seen_samples:{uid}"


def alias_training(uid: str) -> str:
    return f"{_ROOT}:alias_training:{uid}"


def alias_hour(uid: str, hour: int) -> str:
    return f"{_ROOT}:alias_hour:{uid} {hour}"


def alias_windows(uid: str) -> str:
    return f"{_ROOT}:alias_windows:{uid}"


def alias_proposals(uid: str) -> str:
    return f"{_ROOT}:alias_proposals:{uid}"


def usage(project: str, day: str) -> str:
    return f"{_ROOT}:usage:{project} {day}"


def training_pace(base: str) -> str:
    return f"{_ROOT}:training_pace:{base}"
