"""The ClientApp of a deployed device: it opens the store that the SuperNode's ``--node-config`` names.

Nothing that the server sends decides how the device adapts, what it spends or where its store lies: the rules are those
of the bundle that it adopted, and the path is the SuperNode's own.
"""
