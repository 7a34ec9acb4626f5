"""The main module of every process that multiprocessing starts for the launcher: see lifeline."""

from __future__ import annotations

from services.inference.lifeline import enter

if __name__ == "__mp_main__":
    enter()
