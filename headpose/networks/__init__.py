"""State dicts, and folded batch norms, of any PyTorch module."""
