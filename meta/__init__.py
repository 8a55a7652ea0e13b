"""What is learned: the policy, its objective, adaptation and the Reptile step.

Knows torch, neither Flower nor privacy.
"""
