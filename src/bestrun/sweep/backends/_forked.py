"""The last import of the server that local workers are forked from: each is born with what it knows and has loaded.

Nothing else imports this module: to import it is to do it.
"""

import gc

from ...storage import provenance

# Each worker would find out the same, and what a run records is of the code that is loaded here
provenance.code()
provenance.installed()
provenance.computed_by(None)

# Else a worker's first collection looks through all that is loaded, and so copies the memory it lies in: half a second
gc.collect()
gc.freeze()
