"""What it costs: clipping, noise, DP-SGD on Opacus, accounting, the ledger.

Knows neither recommenders nor Flower: tensors with names come in, tensors with names and a cost come out.
"""
