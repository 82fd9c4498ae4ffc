"""How a run begins, goes on and ends.

Read first: start.py (a new run), carry.py (to its end, whatever that is), resume.py (the same run again), rerun.py;
gallery.py draws meanwhile. Before any of it preflight.py, `bestrun check`, with a file check_... a subject.
"""
