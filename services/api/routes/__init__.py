"""Every route, in the order of the documentation."""

from services.api.routes import files, graders, health, inference, jobs, models, permissions, uploads

ROUTES = [
    *files.ROUTES, *uploads.ROUTES, *jobs.ROUTES, *permissions.ROUTES, *graders.ROUTES, *models.ROUTES,
    *inference.ROUTES, *health.ROUTES,
]  # fmt: skip
