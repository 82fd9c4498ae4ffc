"""Imported first by a server of local workers that is the command's own: its Keras may do without what no run takes.

Nothing else imports this module: to import it is to do it.
"""

from ... import environment

environment.is_command = True
