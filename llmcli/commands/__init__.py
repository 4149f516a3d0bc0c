"""The commands, one file each; ``options/`` holds what several share, ``shell/`` help, configuration and errors."""
