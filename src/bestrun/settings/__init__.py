"""What was typed, as a checked Config, or as lines that say what to type instead. Nothing here imports TensorFlow.

Read first: config.py (every setting as a type), compose.py (command line and conf/ to Config), mistakes.py (the lines).
"""
