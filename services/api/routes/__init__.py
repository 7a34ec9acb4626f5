"""Every route, in the order of the documentation."""

from services.api.routes import (
    admin_keys,
    api_keys,
    docs,
    files,
    graders,
    health,
    inference,
    jobs,
    models,
    permissions,
    projects,
    service_accounts,
    uploads,
    webhooks,
)

ROUTES = [
    *files.ROUTES, *uploads.ROUTES, *jobs.ROUTES, *permissions.ROUTES, *graders.ROUTES, *models.ROUTES,
    *inference.ROUTES, *webhooks.ROUTES, *projects.ROUTES, *service_accounts.ROUTES, *api_keys.ROUTES,
    *admin_keys.ROUTES, *health.ROUTES, *docs.ROUTES,
]  # fmt: skip
