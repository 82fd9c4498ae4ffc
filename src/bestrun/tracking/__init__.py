"""What MLflow knows: a copy of the run folder, made in the background and completed later.

Read first: store.py (which store), lookup.py (which of its runs), sender.py (what is sent of a run, and when),
translate.py (how it is written there), mirror.py and background.py (the thread), sync.py (what is sent later),
listing.py (all runs at once), transfer.py (a run in another store), page.py and server.py (MLflow's page).
"""
