"""fedrec: federated, privacy-preserving recommendation with a meta-learned policy."""
