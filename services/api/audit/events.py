"""What the audit log calls each operation that changes something: OpenAI's names, and ours after their manner."""

from __future__ import annotations

EVENTS = {
    "createFile": "file.created",
    "deleteFile": "file.deleted",
    "createUpload": "upload.created",
    "completeUpload": "upload.completed",
    "cancelUpload": "upload.cancelled",
    "createFineTuningJob": "fine_tuning.job.created",
    "cancelFineTuningJob": "fine_tuning.job.cancelled",
    "pauseFineTuningJob": "fine_tuning.job.paused",
    "resumeFineTuningJob": "fine_tuning.job.resumed",
    "createFineTuningCheckpointPermission": "checkpoint.permission.created",
    "deleteFineTuningCheckpointPermission": "checkpoint.permission.deleted",
    "importModel": "model.imported",
    "deleteModel": "model.deleted",
    "updateModelSettings": "model.settings.updated",
    "bringModelIntoMemory": "model.residency.updated",
    "createAlias": "alias.created",
    "updateAlias": "alias.updated",
    "deleteAlias": "alias.deleted",
    "promoteCanary": "alias.promoted",
    "rollBackAlias": "alias.rolled_back",
    "deleteShadowPairs": "alias.shadow_pairs.deleted",
    "deleteResponse": "response.deleted",
    "updateChatCompletion": "chat.completion.updated",
    "deleteChatCompletion": "chat.completion.deleted",
    "createBatch": "batch.created",
    "cancelBatch": "batch.cancelled",
    "createEval": "eval.created",
    "updateEval": "eval.updated",
    "deleteEval": "eval.deleted",
    "createEvalRun": "eval.run.created",
    "cancelEvalRun": "eval.run.cancelled",
    "cancelEvalRunAtItsUrl": "eval.run.cancelled",
    "deleteEvalRun": "eval.run.deleted",
    "createSweep": "fine_tuning.sweep.created",
    "cancelSweep": "fine_tuning.sweep.cancelled",
    "createReplay": "fine_tuning.replay.created",
    "cancelReplay": "fine_tuning.replay.cancelled",
    "promoteReplay": "fine_tuning.replay.promoted",
    "createWebhookEndpoint": "webhook_endpoint.created",
    "updateWebhookEndpoint": "webhook_endpoint.updated",
    "deleteWebhookEndpoint": "webhook_endpoint.deleted",
    "rotateWebhookEndpointSecret": "webhook_endpoint.secret.rotated",
    "testWebhookEndpoint": "webhook_endpoint.tested",
    "createProject": "project.created",
    "modifyProject": "project.updated",
    "archiveProject": "project.archived",
    "updateProjectRateLimits": "rate_limit.updated",
    "createProjectServiceAccount": "service_account.created",
    "updateProjectServiceAccount": "service_account.updated",
    "deleteProjectServiceAccount": "service_account.deleted",
    "createProjectServiceAccountApiKey": "api_key.created",
    "createProjectApiKey": "api_key.created",
    "updateProjectApiKey": "api_key.updated",
    "rotateProjectApiKey": "api_key.rotated",
    "deleteProjectApiKey": "api_key.deleted",
    "createAdminApiKey": "api_key.created",
    "rotateAdminApiKey": "api_key.rotated",
    "deleteAdminApiKey": "api_key.deleted",
}
"""By operation id."""

UNRECORDED = frozenset(
    {
        # answers of models: what is kept of them is seen at /v1/chat/completions and /v1/responses
        "createChatCompletion", "createCompletion", "createEmbedding", "createResponse", "createMessage",
        "countResponseInputTokens", "countMessageTokens",
        # never change anything here
        "compactResponse", "cancelResponse", "runGrader", "validateGrader", "estimateFineTuningJob",
        # a part is of use once its upload is completed, which is recorded
        "addUploadPart",
    }
)  # fmt: skip
"""Operations that are no GET and leave no entry."""
