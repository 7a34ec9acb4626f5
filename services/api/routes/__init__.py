"""Every route, in the order of the documentation."""

from services.api.routes import (
    admin_keys,
    api_keys,
    batches,
    docs,
    files,
    graders,
    health,
    inference,
    jobs,
    messages,
    models,
    permissions,
    projects,
    responses,
    service_accounts,
    stored_completions,
    uploads,
    webhooks,
)

ROUTES = [
    *files.ROUTES, *uploads.ROUTES, *jobs.ROUTES, *permissions.ROUTES, *graders.ROUTES, *models.ROUTES,
    *inference.ROUTES, *stored_completions.ROUTES, *responses.ROUTES, *messages.ROUTES, *batches.ROUTES,
    *webhooks.ROUTES, *projects.ROUTES, *service_accounts.ROUTES, *api_keys.ROUTES, *admin_keys.ROUTES,
    *health.ROUTES, *docs.ROUTES,
]  # fmt: skip
