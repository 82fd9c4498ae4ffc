"""What one can type: a file for each verb, which parses, calls the other packages, and prints.

Read first: main.py (the group, exit codes, signals and streams), then a verb, such as show.py; options.py is what verbs
share, run_table.py and sections.py what `runs` and `report` show.
"""
