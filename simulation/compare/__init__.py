"""A/B tests of two finished runs over the same simulated users; knows the rest of the simulation, nothing knows it."""
