"""Every route, in the order of the documentation."""

from services.api.routes import docs, files, graders, health, inference, jobs, models, permissions, uploads, webhooks

ROUTES = [
    *files.ROUTES, *uploads.ROUTES, *jobs.ROUTES, *permissions.ROUTES, *graders.ROUTES, *models.ROUTES,
    *inference.ROUTES, *webhooks.ROUTES, *health.ROUTES, *docs.ROUTES,
]  # fmt: skip
