"""Networks, a file each: `model=NAME` takes the settings of conf/model/NAME.yaml and calls `build` in NAME.py here.

A network of your own may stand outside this package, too: docs/your-own.md goes through it.
"""
