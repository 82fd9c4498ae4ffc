"""What is on disk: a run's folder is the truth, MLflow's record a copy of it.

Read first: journal.py (the events), history.py (what they say), checkpoint.py (weights and state, proved by a digest),
folder.py (a run's files), files.py (how one is replaced), locks.py (who owns a folder), home.py (the `mlruns` that is
ours, also after a move), parcel.py and relocate.py (files and homes on their way, proved where they arrive).
"""
