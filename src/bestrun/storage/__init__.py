"""What is on disk: a run's folder is the truth, MLflow's record a copy of it.

Read first: journal.py (the events), history.py (what they say), checkpoint.py (weights and state, proved by a digest),
folder.py (a run's files, atomic replacement, locks), home.py (the `mlruns` that is ours, also after a move).
"""
