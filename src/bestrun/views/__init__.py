"""What a person sees, made from plain values: lines on a screen, pictures, charts, a page.

Read first: screen.py (a run's lines and bar), tiles.py (the pictures of a run), curves.py and charts.py, html.py.
"""
