"""What is learned: the policy, its objective, adaptation and the Reptile step. Knows torch, not Flower and not privacy."""
