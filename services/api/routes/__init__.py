"""Every route, in the order of the documentation."""

from services.api.routes import (
    admin_keys,
    aliases,
    api_keys,
    audit_logs,
    batches,
    docs,
    evals,
    files,
    graders,
    health,
    inference,
    jobs,
    messages,
    model_settings,
    models,
    permissions,
    projects,
    residency,
    responses,
    rollouts,
    service_accounts,
    stored_completions,
    uploads,
    webhooks,
)

GROUPS = {
    "Files": [*files.ROUTES, *uploads.ROUTES],
    "Fine-tuning": [*jobs.ROUTES, *rollouts.ROUTES, *permissions.ROUTES, *graders.ROUTES],
    "Models": [*models.ROUTES, *model_settings.ROUTES, *residency.ROUTES],
    "Aliases": aliases.ROUTES,
    "Generation": [*inference.ROUTES, *responses.ROUTES, *messages.ROUTES],
    "Stored completions": stored_completions.ROUTES,
    "Batches": batches.ROUTES,
    "Evals": evals.ROUTES,
    "Webhooks": webhooks.ROUTES,
    "Organization": [
        *projects.ROUTES,
        *service_accounts.ROUTES,
        *api_keys.ROUTES,
        *admin_keys.ROUTES,
        *audit_logs.ROUTES,
    ],
    "This server": [*health.ROUTES, *docs.ROUTES],
}
"""Routes by the headings under which the documentation has them."""

ROUTES = [route for routes in GROUPS.values() for route in routes]
