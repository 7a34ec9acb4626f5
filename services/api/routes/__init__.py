"""Every route, in the order of the documentation."""

from services.api.routes import files, health, inference, jobs, models

ROUTES = [*files.ROUTES, *jobs.ROUTES, *models.ROUTES, *inference.ROUTES, *health.ROUTES]
