"""Parts in pure torch: nothing here knows audio files, cuts or the command line."""
