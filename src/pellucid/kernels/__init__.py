"""The compiled operations, each beside its plain NumPy float64 reference.

Only ``simd/`` has code for specific CPU instructions.
"""
