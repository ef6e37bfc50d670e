"""The compiled operations, each beside its plain NumPy float64 reference.

``simd/`` is the only folder that knows instructions.
"""
