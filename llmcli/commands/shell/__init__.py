"""What surrounds every command: help, the config file and environment, hints for errors, Ctrl-C, torchrun."""
