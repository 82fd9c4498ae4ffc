"""What MLflow knows: a copy of the run folder, made in the background and completed later.

Read first: store.py (which store), lookup.py (which of its runs), mirror.py (the thread) and sender.py (what it sends),
sync.py (what is sent later), listing.py (all runs at once), page.py and server.py (MLflow's page).
"""
