"""The dashboard: a page, its assets, and the few views that it polls (docs/decisions/0007-dashboard.md)."""

from __future__ import annotations

from fastapi import APIRouter

from state_tracking_api.http.dashboard import page, views

# Two route classes, one router: both are lean, and the application takes routes, not classes.
router = APIRouter(tags=["operations"])
router.routes.extend((*page.router.routes, *views.router.routes))
