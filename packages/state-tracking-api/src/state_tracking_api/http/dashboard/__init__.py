"""The dashboard: a page, its assets, and the few views that it polls (docs/decisions/0007-dashboard.md)."""

from __future__ import annotations

from state_tracking_api.http.dashboard import page, views

routes = (*page.router.routes, *views.router.routes)
