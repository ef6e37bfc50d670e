"""What needs the model: requests, sequences, beams, scoring, sentence vectors; the model runner and the prefix cache.
"""
