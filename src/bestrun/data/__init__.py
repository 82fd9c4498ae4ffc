"""From files to verified arrays to splits, and which image comes when.

Read first: dataset.py (the splits and their digest), order.py (which images a step takes), arrays.py (IDX and npz),
pixels.py and labels.py (what becomes of what a file holds), known.py (MNIST and Fashion-MNIST). Pictures: folders.py
and parquet.py (which there are), splits.py (which train), pictures.py (decoded when they are asked for), images.py (one
of them), pack.py. Larger than memory: rows.py (images by number, wherever they are), cache.py (decoded once),
decoded.py.
"""
