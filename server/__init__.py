"""The coordinator: Flower Strategy, reply gate, round loop, checkpoints and ServerApp."""
