"""What a run was, and whether it can be trusted.

Read first: record.py (a run as we know it, from its folder or from MLflow), fetch.py (its checkpoint, proved),
restore.py (its network rebuilt and tested), then show.py, compare.py, predict.py, export.py and registry.py; move.py
and archive.py (to another home, to another machine).
"""
