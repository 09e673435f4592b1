"""An epoch, a run, its files and its command line."""
