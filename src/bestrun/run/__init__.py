"""How a run begins, goes on and ends.

Read first: start.py (from settings to a result), resume.py (the same run again), rerun.py; gallery.py draws meanwhile.
"""
