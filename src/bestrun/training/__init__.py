"""What TensorFlow computes: a step is a function of settings, data and its number.

Read first: loop.py, from top to bottom; then networks/ (a file each), optimizers.py, evaluation.py,
augmentation.py (with per_image.py, mixing.py, draws.py) and schedules.py. model.py builds networks, variables.py names
what a checkpoint has of them, device.py prepares TensorFlow, preview.py has what the first step sees, proof.py tells
one network's function from another's.
"""
