"""Which runs, in which order, where: grids and studies, and the same line again goes on.

Read first: space.py (what was typed), manifest.py (what is on disk), scheduler.py (the order), backends/ (the
processes); then study.py (Optuna), summary.py, board.py, parent.py (the sweep in MLflow), together.py
(a sweep on its way to another home).
"""
