"""How simulated users behave: taste, choice, drift, fatigue, noise. numpy and the room's own data; no Gymnasium here.

``simulation.users`` is the public door.
"""
