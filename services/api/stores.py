"""The database as the API reads and writes it: every store, on one client."""

from __future__ import annotations

from dataclasses import dataclass

from shared import keys
from shared.distillation_records import KIND as DISTILLATION
from shared.distillation_records import DistillationRecord
from shared.key_hash import KeyHash
from shared.promotion_records import PromotionRecord
from shared.replay_records import REPLAY, ReplayRecord
from shared.settings import Settings
from shared.store.ab_votes import AbVoteStore
from shared.store.alias_samples import SampleStore
from shared.store.alias_traffic import TrafficStore
from shared.store.aliases import AliasStore
from shared.store.api_keys import KeyStore
from shared.store.audit import AuditStore
from shared.store.batches import BatchStore
from shared.store.client import Client
from shared.store.completions import CompletionStore
from shared.store.eval_runs import EvalRunStore
from shared.store.evals import EvalStore
from shared.store.files import FileStore
from shared.store.flows import FlowStore
from shared.store.gate_runs import GateRunStore
from shared.store.idempotency import IdempotencyStore
from shared.store.jobs import JobStore
from shared.store.leases import LeaseStore
from shared.store.limits import LimitStore
from shared.store.model_settings import ModelSettingsStore
from shared.store.permissions import PermissionStore
from shared.store.preferences import PreferenceStore
from shared.store.presence import Presence
from shared.store.projects import ProjectStore, ServiceAccountStore
from shared.store.proposals import ProposalStore
from shared.store.registry import Registry
from shared.store.responses import ResponseStore
from shared.store.shadow_pairs import PairStore
from shared.store.uploads import UploadStore
from shared.store.usage import UsageStore
from shared.store.webhooks import DeliveryStore, WebhookStore
from shared.sweep_records import SWEEP, SweepRecord


@dataclass(frozen=True)
class Stores:
    """Handlers ask for one by its name here."""

    files: FileStore
    upload_store: UploadStore
    jobs: JobStore
    idempotency: IdempotencyStore
    permissions: PermissionStore
    registry: Registry
    presence: Presence
    model_settings_store: ModelSettingsStore
    alias_store: AliasStore
    alias_traffic: TrafficStore
    shadow_pairs: PairStore
    gate_runs: GateRunStore
    alias_samples: SampleStore
    proposal_store: ProposalStore
    promotion_store: FlowStore[PromotionRecord]
    completions: CompletionStore
    responses: ResponseStore
    batch_store: BatchStore
    batch_leases: LeaseStore
    eval_store: EvalStore
    eval_run_store: EvalRunStore
    eval_run_leases: LeaseStore
    distillation_store: FlowStore[DistillationRecord]
    ab_vote_store: AbVoteStore
    preference_store: PreferenceStore
    usage: UsageStore
    replay_store: FlowStore[ReplayRecord]
    sweep_store: FlowStore[SweepRecord]
    webhook_store: WebhookStore
    deliveries: DeliveryStore
    limits: LimitStore
    key_store: KeyStore
    projects: ProjectStore
    service_accounts: ServiceAccountStore
    audit_store: AuditStore

    @classmethod
    def on(cls, client: Client, settings: Settings, key_hash: KeyHash) -> Stores:
        """Return the stores, none of which connects before its first use."""
        kept_days, project_bytes = settings.stored_completion_days, settings.project_storage_bytes
        return cls(
            files=FileStore(client, project_bytes=project_bytes),
            upload_store=UploadStore(client, project_bytes=project_bytes),
            jobs=JobStore(client),
            idempotency=IdempotencyStore(client),
            permissions=PermissionStore(client),
            registry=Registry(client),
            presence=Presence(client),
            model_settings_store=ModelSettingsStore(client),
            alias_store=AliasStore(client),
            alias_traffic=TrafficStore(client),
            shadow_pairs=PairStore(client),
            gate_runs=GateRunStore(client),
            alias_samples=SampleStore(client),
            proposal_store=ProposalStore(client),
            promotion_store=FlowStore(client, "promotion", PromotionRecord),
            completions=CompletionStore(client, keep_days=kept_days, project_bytes=project_bytes),
            responses=ResponseStore(
                client,
                keep_days=kept_days,
                max_conversation_bytes=settings.max_body_bytes,
                project_bytes=project_bytes,
            ),
            batch_store=BatchStore(client),
            batch_leases=LeaseStore(client, ttl_s=settings.lease_ttl_s, key=keys.batch_lease, owned=keys.batch),
            eval_store=EvalStore(client),
            eval_run_store=EvalRunStore(
                client, item_days=settings.eval_item_days, project_runs=settings.project_eval_runs
            ),
            eval_run_leases=LeaseStore(
                client, ttl_s=settings.lease_ttl_s, key=keys.eval_run_lease, owned=keys.eval_run
            ),
            distillation_store=FlowStore(client, DISTILLATION, DistillationRecord),
            ab_vote_store=AbVoteStore(client, project_bytes=project_bytes),
            preference_store=PreferenceStore(client, project_bytes=project_bytes),
            usage=UsageStore(client),
            replay_store=FlowStore(client, REPLAY, ReplayRecord),
            sweep_store=FlowStore(client, SWEEP, SweepRecord),
            webhook_store=WebhookStore(client),
            deliveries=DeliveryStore(client),
            limits=LimitStore(client),
            key_store=KeyStore(client, key_hash),
            projects=ProjectStore(client),
            service_accounts=ServiceAccountStore(client),
            audit_store=AuditStore(client),
        )
