"""What TensorFlow computes: a step is a function of settings, data and its number.

Read first: loop.py, from top to bottom; then model.py (networks and optimizers), evaluation.py, augmentation.py and
schedules.py. device.py prepares TensorFlow, proof.py tells one network's function from another's.
"""
