"""Networks, a file each: `model=NAME` takes the settings of conf/model/NAME.yaml and calls `build` in NAME.py here.

A network of your own is those two files; docs/your-own.md goes through it.
"""
