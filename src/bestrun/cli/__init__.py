"""What one can type. Verbs parse, call the other packages, and print; nothing heavy is imported until a verb needs it.

Read first: main.py (the group, the verbs that make runs, exit codes), past.py (the verbs that look at them), options.py
(what verbs share), run_table.py and report.py (what `runs` and `report` show).
"""
