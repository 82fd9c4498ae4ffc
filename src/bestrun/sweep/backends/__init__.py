"""Where a sweep's runs are carried out: in this process, in processes of this machine, or on a Ray cluster.

A backend starts tasks and says which have ended; how a run went stands in its journal. A run is asked to stop by the
file `stop` in its folder, which every backend's processes can see. Read first: work.py (a task, and how one is carried
through), inline.py, local.py, ray.py.
"""
