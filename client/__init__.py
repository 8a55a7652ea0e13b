"""The device: its store, its adaptation under privacy and its Flower ClientApp. Never imports the simulation."""
