"""Matrices that other programs store packed: from the stored tensors of one matrix to its rows in float32.

Each file has one idea of storing a matrix; ``recognize`` chooses by the names of the stored tensors.
"""
