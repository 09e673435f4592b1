"""What measures and makes, and is no test: figures, pictures, the sample."""
