"""The files of strangers to arrays, without PyTorch."""
