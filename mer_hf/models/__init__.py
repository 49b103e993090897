"""Everything that travels to the Hub with a checkpoint. Flat, and inside it only siblings are imported."""
