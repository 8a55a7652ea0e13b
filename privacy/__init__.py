"""What it costs: clipping, noise, DP-SGD on Opacus, accounting and the ledger. Knows neither recommenders nor Flower."""
